# AscendC kernels for Atlas A2 and A3, built where CANN is. Without it MMX_TESTS still builds the same kernel
# bodies for the host emulator, which runs them in tests (docs/ascend.md).
set(MMX_HAVE_ASCEND OFF)
if(NOT MMX_ASCEND STREQUAL "OFF")
    find_package(ASC QUIET HINTS $ENV{ASCEND_HOME_PATH})
    if(ASC_FOUND)
        set(MMX_HAVE_ASCEND ON)
    elseif(MMX_ASCEND STREQUAL "ON")
        message(FATAL_ERROR "MMX_ASCEND=ON, but CANN 9's CMake package ASC was not found; source CANN's set_env.sh, "
                            "which sets ASCEND_HOME_PATH, or use MMX_ASCEND=AUTO")
    endif()
endif()

if(MMX_HAVE_ASCEND)
    enable_language(ASC)
    file(GLOB MMX_ASCEND_KERNELS CONFIGURE_DEPENDS ascend/kernels/*.asc)
    add_library(mmx_ascend_kernels STATIC ${MMX_ASCEND_KERNELS})
    target_include_directories(mmx_ascend_kernels PRIVATE ${PROJECT_SOURCE_DIR})
    target_compile_options(mmx_ascend_kernels PRIVATE $<$<COMPILE_LANGUAGE:ASC>:--npu-arch=dav-2201>)
endif()
