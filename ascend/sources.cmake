# AscendC kernels need CANN's compiler.
set(MMX_HAVE_ASCEND OFF)
if(NOT MMX_ASCEND STREQUAL "OFF")
    find_program(MMX_ASCEND_COMPILER NAMES ccec bisheng PATHS $ENV{ASCEND_TOOLKIT_HOME}/bin)
    if(MMX_ASCEND STREQUAL "ON" AND NOT MMX_ASCEND_COMPILER)
        message(FATAL_ERROR "MMX_ASCEND=ON, but no AscendC compiler (ccec or bisheng) was found; "
                            "source CANN's set_env.sh first")
    endif()
endif()
