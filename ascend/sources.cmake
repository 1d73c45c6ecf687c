# AscendC kernels: none yet. The option stands so that asking for them is answered, not ignored.
if(MMX_ASCEND STREQUAL "ON")
    message(FATAL_ERROR "MMX_ASCEND=ON, but this version of mmx has no AscendC kernels; use AUTO or OFF")
endif()
