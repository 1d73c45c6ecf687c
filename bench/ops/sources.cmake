# mmx_bench: all microbenchmarks in one program, torch-free.
file(GLOB MMX_BENCH_SOURCES CONFIGURE_DEPENDS bench/ops/*.cpp)
add_executable(mmx_bench
    bench/common/main.cpp bench/common/bench.cpp bench/common/cpu_backend.cpp bench/common/fma_peak.cpp
    ${MMX_BENCH_SOURCES})
mmx_warnings(mmx_bench)
target_compile_definitions(mmx_bench PRIVATE
    MMX_CASES_DIR="${PROJECT_SOURCE_DIR}/tests/cases" ${MMX_CPU_DEFINITIONS})
set_source_files_properties(bench/common/fma_peak.cpp PROPERTIES COMPILE_OPTIONS "-O3;-march=native")
target_link_libraries(mmx_bench PRIVATE mmx_cpu)
if(MMX_HAVE_CUDA)
    target_sources(mmx_bench PRIVATE bench/common/cuda_backend.cpp)
    target_include_directories(mmx_bench SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
    target_link_libraries(mmx_bench PRIVATE mmx_cuda_kernels)
else()
    target_sources(mmx_bench PRIVATE bench/common/no_cuda_backend.cpp)
endif()
