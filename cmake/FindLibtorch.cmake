# Finds libtorch inside the Python wheel, without Python's own CMake files (those ask for a CUDA toolkit).
#
# Looked at, in this order: ETHER_TORCH_DIR (CMake or environment variable), the folder that tools/bootstrap
# fills, and the torch package of `python3`. A folder is either the package itself (with include/ and lib/) or
# the one that holds `torch`.
#
# Defines Libtorch_ROOT, Libtorch_VERSION, Libtorch_LIBRARY_DIRS (for run paths) and the imported targets
#   Libtorch::gomp  the OpenMP runtime that libtorch loads; nothing else may bring a second one
#   Libtorch::c10, Libtorch::cpu
# CUDA needs none: its library is opened at run time, and so is its compiler (ops/gpu/launcher.h).

set(_candidates)
foreach(_dir IN ITEMS "${ETHER_TORCH_DIR}" "$ENV{ETHER_TORCH_DIR}" "${ETHER_CACHE_DIR}/libtorch-${Libtorch_FIND_VERSION}")
    if(_dir)
        list(APPEND _candidates "${_dir}" "${_dir}/torch")
    endif()
endforeach()
find_path(Libtorch_ROOT NAMES include/ATen/core/Tensor.h PATHS ${_candidates} NO_DEFAULT_PATH)
if(NOT Libtorch_ROOT)
    execute_process(
        COMMAND python3 -c "import torch, os; print(os.path.dirname(torch.__file__), end='')"
        OUTPUT_VARIABLE _from_python ERROR_QUIET)
    if(_from_python)
        find_path(Libtorch_ROOT NAMES include/ATen/core/Tensor.h PATHS "${_from_python}" NO_DEFAULT_PATH)
    endif()
endif()

if(Libtorch_ROOT)
    file(STRINGS "${Libtorch_ROOT}/version.py" _version REGEX "^__version__ = ")
    string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" Libtorch_VERSION "${_version}")
    find_library(Libtorch_cpu_LIBRARY NAMES libtorch_cpu.so PATHS "${Libtorch_ROOT}/lib" NO_DEFAULT_PATH)
    find_library(Libtorch_c10_LIBRARY NAMES libc10.so PATHS "${Libtorch_ROOT}/lib" NO_DEFAULT_PATH)
    find_library(Libtorch_gomp_LIBRARY NAMES libgomp.so.1 PATHS "${Libtorch_ROOT}/lib" NO_DEFAULT_PATH)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
    Libtorch
    REQUIRED_VARS Libtorch_ROOT Libtorch_cpu_LIBRARY Libtorch_c10_LIBRARY Libtorch_gomp_LIBRARY
    VERSION_VAR Libtorch_VERSION
    REASON_FAILURE_MESSAGE "Run tools/bootstrap, or set ETHER_TORCH_DIR to an unpacked torch wheel.")

if(Libtorch_FOUND AND NOT TARGET Libtorch::cpu)
    # libtorch_cpu itself needs libcudart and libcupti, which come as wheels beside torch.
    file(GLOB _nvidia_dirs CONFIGURE_DEPENDS "${Libtorch_ROOT}/../nvidia/*/lib" "${ETHER_CACHE_DIR}/nvrtc-*/nvidia/*/lib")
    set(Libtorch_LIBRARY_DIRS "${Libtorch_ROOT}/lib" ${_nvidia_dirs})

    add_library(Libtorch::gomp SHARED IMPORTED)
    set_target_properties(Libtorch::gomp PROPERTIES IMPORTED_LOCATION "${Libtorch_gomp_LIBRARY}")

    # The wheel carries a fmt of its own version; the system's must win, since it is the one that is linked.
    find_path(Libtorch_fmt_INCLUDE_DIR fmt/format.h PATHS /usr/include NO_DEFAULT_PATH)
    mark_as_advanced(Libtorch_fmt_INCLUDE_DIR)
    file(MAKE_DIRECTORY "${CMAKE_BINARY_DIR}/system-fmt")
    file(CREATE_LINK "${Libtorch_fmt_INCLUDE_DIR}/fmt" "${CMAKE_BINARY_DIR}/system-fmt/fmt" SYMBOLIC)

    set(_includes "${CMAKE_BINARY_DIR}/system-fmt" "${Libtorch_ROOT}/include"
                  "${Libtorch_ROOT}/include/torch/csrc/api/include")
    add_library(Libtorch::c10 SHARED IMPORTED)
    set_target_properties(Libtorch::c10 PROPERTIES
        IMPORTED_LOCATION "${Libtorch_c10_LIBRARY}" INTERFACE_INCLUDE_DIRECTORIES "${_includes}")

    add_library(Libtorch::cpu SHARED IMPORTED)
    set_target_properties(Libtorch::cpu PROPERTIES
        IMPORTED_LOCATION "${Libtorch_cpu_LIBRARY}" INTERFACE_INCLUDE_DIRECTORIES "${_includes}")
    target_link_libraries(Libtorch::cpu INTERFACE Libtorch::c10 Libtorch::gomp)
    foreach(_dir IN LISTS Libtorch_LIBRARY_DIRS)
        target_link_options(Libtorch::cpu INTERFACE "LINKER:-rpath-link,${_dir}")
    endforeach()
endif()
mark_as_advanced(Libtorch_ROOT Libtorch_cpu_LIBRARY Libtorch_c10_LIBRARY Libtorch_gomp_LIBRARY)
