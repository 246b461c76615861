# ether_rust_text: the static library of rust/text. rust/text/build compiles it once per content of its sources.

set(_dir "${PROJECT_SOURCE_DIR}/rust/text")
set(_library "${PROJECT_BINARY_DIR}/lib/libether_rust_text.a")
file(GLOB _sources CONFIGURE_DEPENDS "${_dir}/src/*.rs")
add_custom_command(
    OUTPUT "${_library}"
    COMMAND "${_dir}/build" "${ETHER_CACHE_DIR}" "${_library}"
    DEPENDS ${_sources} "${_dir}/Cargo.toml" "${_dir}/Cargo.lock" "${_dir}/build"
    COMMENT "Rust library of tokenizers and chat templates"
    VERBATIM)
# ThreadSanitizer does not see the locks of code that was not compiled for it; it can leave out a shared library
# (tests/thread_sanitizer).
if(ETHER_SANITIZE MATCHES thread)
    set(_archive "${_library}")
    set(_library "${PROJECT_BINARY_DIR}/lib/libether_rust_text.so")
    add_custom_command(
        OUTPUT "${_library}"
        COMMAND "${CMAKE_CXX_COMPILER}" -shared -o "${_library}"
                -Wl,--whole-archive "${_archive}" -Wl,--no-whole-archive -lpthread -lm
        DEPENDS "${_archive}"
        VERBATIM)
endif()
add_custom_target(ether_rust_text_library DEPENDS "${_library}")

add_library(ether_rust_text INTERFACE)
add_dependencies(ether_rust_text ether_rust_text_library)
target_include_directories(ether_rust_text INTERFACE "${_dir}")
target_link_libraries(ether_rust_text INTERFACE "${_library}" Threads::Threads ${CMAKE_DL_LIBS} m)
