# What GPUs' kernels are compiled from at run time: all *.cuh files as one text, kDeviceCode (ops/rows/device_code.h).
# Run as a script it writes OUTPUT from PRELUDE and FILES.
if(CMAKE_SCRIPT_MODE_FILE)
    set(_text "#include \"ether/ops/rows/device_code.h\"\n\nconst char* const ether::ops::kDeviceCode =")
    foreach(_file IN LISTS FILES)
        file(READ "${_file}" _content)
        string(APPEND _text "\n    R\"cuda(${_content})cuda\"")
    endforeach()
    file(WRITE "${OUTPUT}" "${_text};\n")
    return()
endif()

set(_prelude "${PROJECT_SOURCE_DIR}/src/ether/ops/rows/prelude.cuh")
file(GLOB_RECURSE _files CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/src/ether/ops/*.cuh")
list(REMOVE_ITEM _files "${_prelude}")
list(PREPEND _files "${_prelude}")
set(ETHER_DEVICE_CODE "${PROJECT_BINARY_DIR}/device_code.cpp")
add_custom_command(
    OUTPUT "${ETHER_DEVICE_CODE}"
    COMMAND "${CMAKE_COMMAND}" "-DOUTPUT=${ETHER_DEVICE_CODE}" "-DFILES=${_files}" -P "${CMAKE_CURRENT_LIST_FILE}"
    DEPENDS ${_files} "${CMAKE_CURRENT_LIST_FILE}"
    COMMENT "Text of the device code"
    VERBATIM)
