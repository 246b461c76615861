# Flags shared by every target of this project, as the interface target ether_flags.

add_library(ether_flags INTERFACE)
target_compile_features(ether_flags INTERFACE cxx_std_20)
target_include_directories(ether_flags INTERFACE "${PROJECT_SOURCE_DIR}/src")
target_compile_options(ether_flags INTERFACE
    -Wall -Wextra -Wnon-virtual-dtor -Woverloaded-virtual -Wno-missing-field-initializers -Werror
    -ffp-contract=fast -fno-math-errno -fno-trapping-math)
if(CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
    target_compile_options(ether_flags INTERFACE -march=x86-64-v3)
endif()

# OpenMP comes from the one runtime that libtorch loads. GCC compiles for it. Clang can only link with it: it
# skips the pragmas, so its builds run our own loops in one thread.
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    target_compile_options(ether_flags INTERFACE -fopenmp=libgomp -Wno-unknown-pragmas
        -Wno-ignored-attributes)  # Clang has no prefer-vector-width, and then compiles for AVX2 alone
    target_include_directories(ether_flags SYSTEM INTERFACE "${PROJECT_SOURCE_DIR}/cmake/clang")
else()
    target_compile_options(ether_flags INTERFACE -fopenmp)
endif()

set(ETHER_SANITIZE "" CACHE STRING "Sanitizers to build with: address,undefined or thread")
if(ETHER_SANITIZE)
    target_compile_options(ether_flags INTERFACE
        -fsanitize=${ETHER_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_link_options(ether_flags INTERFACE -fsanitize=${ETHER_SANITIZE})
endif()

option(ETHER_FUZZ "Build the fuzz targets (with Clang)" OFF)
if(ETHER_FUZZ)
    target_compile_options(ether_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

# The compiler cache: paths below this tree count as relative, so that a second clone finds the first one's objects.
find_program(CCACHE ccache)
mark_as_advanced(CCACHE)
if(CCACHE)
    set(CMAKE_CXX_COMPILER_LAUNCHER
        ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros
        CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${CCACHE})
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
        target_compile_options(ether_flags INTERFACE -fpch-preprocess)
    else()
        target_compile_options(ether_flags INTERFACE -Xclang -fno-pch-timestamp)
    endif()
endif()
