# Included by ggml's project() call (CMAKE_PROJECT_ggml_INCLUDE).
#
# GGML_CPU_ALL_VARIANTS defines fourteen CPU backends on x86-64, each a minute of compiling. Most differ in features
# that few machines tell apart, so an image carries the ones named in LLAMA_IMAGES_CPU_VARIANTS. ggml depends on every
# backend it has defined; what is left out is therefore emptied, not removed, and never staged.

function(llama_images_keep_cpu_variants)
    foreach (backend IN LISTS GGML_AVAILABLE_BACKENDS)
        if (NOT backend MATCHES "^ggml-cpu-(.+)$")
            continue()
        endif()
        if (CMAKE_MATCH_1 IN_LIST LLAMA_IMAGES_CPU_VARIANTS)
            list(REMOVE_ITEM LLAMA_IMAGES_CPU_VARIANTS ${CMAKE_MATCH_1})
        else()
            file(WRITE ${CMAKE_BINARY_DIR}/left-out.c "int llama_images_left_out;\n")
            set_property(TARGET ${backend} PROPERTY SOURCES ${CMAKE_BINARY_DIR}/left-out.c)
        endif()
    endforeach()
    if (LLAMA_IMAGES_CPU_VARIANTS)
        message(FATAL_ERROR "no such CPU variant in this source: ${LLAMA_IMAGES_CPU_VARIANTS}")
    endif()
endfunction()

cmake_language(DEFER CALL llama_images_keep_cpu_variants)
