# libmmx_ops.so (schemas + CPU), libmmx_cuda.so, libmmx_ascend.so, and the pybind11 module _C.
find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)

# Why not find_package(Torch): on a CUDA wheel it insists on a toolkit of its own liking. Headers and
# libtorch_cpu are all that the stable ABI needs.
if(NOT DEFINED MMX_TORCH_DIR)
    execute_process(
        COMMAND ${Python_EXECUTABLE} -c
            "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
        OUTPUT_VARIABLE MMX_TORCH_DIR OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
endif()
if(NOT MMX_TORCH_DIR)
    message(FATAL_ERROR "torch is not importable by ${Python_EXECUTABLE}: install torch >= 2.10 "
                        "or configure with -DMMX_TORCH=OFF")
endif()

function(mmx_torch_library target)
    add_library(${target} SHARED ${ARGN})
    mmx_warnings(${target})
    # Why 2.10: the oldest torch whose stable ABI has all that is used; a library built so runs on every later one.
    target_compile_definitions(${target} PRIVATE TORCH_TARGET_VERSION=0x020a000000000000)
    target_include_directories(${target} SYSTEM PRIVATE ${MMX_TORCH_DIR}/include)
    target_link_libraries(${target} PRIVATE ${MMX_TORCH_DIR}/lib/libtorch_cpu.so)
    # Why no rpath: torch is imported first, so its libraries are already loaded under their names.
    set_target_properties(${target} PROPERTIES SKIP_BUILD_RPATH ON)
    target_link_options(${target} PRIVATE -Wl,--exclude-libs,ALL)
    install(TARGETS ${target} LIBRARY DESTINATION mmx)
endfunction()

mmx_torch_library(mmx_ops cpp/ops/schema.cpp cpp/ops/register_cpu.cpp)
target_compile_definitions(mmx_ops PRIVATE ${MMX_CPU_DEFINITIONS})
target_link_libraries(mmx_ops PRIVATE mmx_cpu)

if(MMX_HAVE_CUDA)
    mmx_torch_library(mmx_cuda cuda/register.cpp)
    target_include_directories(mmx_cuda SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
    target_link_libraries(mmx_cuda PRIVATE mmx_cuda_kernels ${CMAKE_DL_LIBS})
endif()

if(MMX_HAVE_ASCEND)
    execute_process(
        COMMAND ${Python_EXECUTABLE} -c
            "import importlib.util as u; s = u.find_spec('torch_npu'); print(s.submodule_search_locations[0] if s else '')"
        OUTPUT_VARIABLE MMX_TORCH_NPU_DIR OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
    if(NOT MMX_TORCH_NPU_DIR)
        message(FATAL_ERROR "CANN is here, but torch_npu is not importable by ${Python_EXECUTABLE}: install the "
                            "version of its torch or configure with -DMMX_ASCEND=OFF")
    endif()
    # Why not mmx_torch_library: torch_npu's queue has C++ classes only, so that this library fits one torch.
    add_library(mmx_ascend SHARED ascend/register.cpp)
    mmx_warnings(mmx_ascend)
    target_include_directories(mmx_ascend SYSTEM PRIVATE
        ${MMX_TORCH_DIR}/include ${MMX_TORCH_DIR}/include/torch/csrc/api/include
        ${MMX_TORCH_NPU_DIR}/include ${MMX_TORCH_NPU_DIR}/include/third_party/acl/inc)
    target_link_libraries(mmx_ascend PRIVATE mmx_ascend_kernels ${MMX_TORCH_DIR}/lib/libtorch_cpu.so
        ${MMX_TORCH_DIR}/lib/libc10.so ${MMX_TORCH_NPU_DIR}/lib/libtorch_npu.so)
    set_target_properties(mmx_ascend PROPERTIES SKIP_BUILD_RPATH ON)
    install(TARGETS mmx_ascend LIBRARY DESTINATION mmx)
endif()

find_package(pybind11 CONFIG QUIET)
if(NOT pybind11_FOUND)
    execute_process(COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir
        OUTPUT_VARIABLE pybind11_DIR OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE MMX_NO_PYBIND11)
    if(MMX_NO_PYBIND11)
        message(FATAL_ERROR "pybind11 is not importable by ${Python_EXECUTABLE}: pip install 'pybind11>=3.0' "
                            "or configure with -DMMX_TORCH=OFF")
    endif()
    find_package(pybind11 CONFIG REQUIRED)
endif()
pybind11_add_module(_C MODULE cpp/bindings/module.cpp)
mmx_warnings(_C)
target_compile_definitions(_C PRIVATE
    MMX_VERSION="${SKBUILD_PROJECT_VERSION}" MMX_HAVE_CUDA=$<BOOL:${MMX_HAVE_CUDA}>
    MMX_CUDA_ARCHS="${MMX_CUDA_ARCHS}" ${MMX_CPU_DEFINITIONS})
target_link_libraries(_C PRIVATE mmx_cpu)
install(TARGETS _C LIBRARY DESTINATION mmx)
