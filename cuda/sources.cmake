# CUDA kernels, built wherever nvcc is: no GPU is needed and any torch will do.
set(MMX_HAVE_CUDA OFF)
if(NOT MMX_CUDA STREQUAL "OFF")
    include(CheckLanguage)
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
        set(MMX_HAVE_CUDA ON)
    elseif(MMX_CUDA STREQUAL "ON")
        message(FATAL_ERROR "MMX_CUDA=ON, but no CUDA compiler (nvcc) was found; put it on PATH or set CUDACXX")
    endif()
endif()

if(MMX_HAVE_CUDA)
    # Why the flag instead of CMAKE_CUDA_ARCHITECTURES: "90a" must reach every pass in the -gencode form.
    set(CMAKE_CUDA_ARCHITECTURES OFF)
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    file(GLOB_RECURSE MMX_CUDA_KERNELS CONFIGURE_DEPENDS cuda/kernels/*.cu)
    add_library(mmx_cuda_kernels STATIC ${MMX_CUDA_KERNELS})
    mmx_warnings(mmx_cuda_kernels)
    foreach(arch ${MMX_CUDA_ARCHS})
        target_compile_options(mmx_cuda_kernels PRIVATE
            $<$<COMPILE_LANGUAGE:CUDA>:-gencode=arch=compute_${arch},code=sm_${arch}>)
    endforeach()
    # Profilers want -DCMAKE_CUDA_FLAGS=-lineinfo; without it the library takes a third of the room.
    target_compile_options(mmx_cuda_kernels PRIVATE
        $<$<COMPILE_LANGUAGE:CUDA>:-O3 --expt-relaxed-constexpr -Xcompiler=-fvisibility=hidden>)
    target_link_libraries(mmx_cuda_kernels PUBLIC CUDA::cudart_static)
endif()
