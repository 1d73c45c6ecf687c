# CPU kernels: every file is compiled once per instruction set level and picked at run time (dispatch.cpp).
# Why the order: inline library code that both levels instantiate is kept from the first object, so the lower
# level comes first.
file(GLOB MMX_CPU_KERNELS CONFIGURE_DEPENDS cpp/kernels/*.cpp)
list(REMOVE_ITEM MMX_CPU_KERNELS ${PROJECT_SOURCE_DIR}/cpp/kernels/dispatch.cpp)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    set(MMX_CPU_LEVELS v3 v4)
    set(MMX_CPU_DEFINITIONS MMX_CPU_ISA_LEVELS)
else()
    set(MMX_CPU_LEVELS generic)
    set(MMX_CPU_DEFINITIONS)
endif()

set(MMX_CPU_OBJECTS)
foreach(level ${MMX_CPU_LEVELS})
    add_library(mmx_cpu_${level} OBJECT ${MMX_CPU_KERNELS})
    mmx_warnings(mmx_cpu_${level})
    target_compile_definitions(mmx_cpu_${level} PRIVATE MMX_CPU_ISA=${level} ${MMX_CPU_DEFINITIONS})
    # Why the -Wno: vectors of 64 bytes are passed between inlined functions only, where no ABI is involved, and
    # gcc 12 warns of its own AVX-512 intrinsics (gcc bug 105593).
    target_compile_options(mmx_cpu_${level} PRIVATE
        -O3 -fno-math-errno -fno-trapping-math -Wno-psabi -Wno-uninitialized -Wno-maybe-uninitialized)
    if(NOT level STREQUAL generic)
        target_compile_options(mmx_cpu_${level} PRIVATE -march=x86-64-${level} -mtune=generic)
    endif()
    if(level STREQUAL v4)
        target_compile_options(mmx_cpu_${level} PRIVATE -mprefer-vector-width=512)
    endif()
    target_link_libraries(mmx_cpu_${level} PRIVATE OpenMP::OpenMP_CXX)
    list(APPEND MMX_CPU_OBJECTS $<TARGET_OBJECTS:mmx_cpu_${level}>)
endforeach()

add_library(mmx_cpu STATIC cpp/kernels/dispatch.cpp ${MMX_CPU_OBJECTS})
mmx_warnings(mmx_cpu)
target_compile_definitions(mmx_cpu PRIVATE ${MMX_CPU_DEFINITIONS})
target_link_libraries(mmx_cpu PUBLIC OpenMP::OpenMP_CXX)
