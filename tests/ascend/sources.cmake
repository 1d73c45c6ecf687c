# The AscendC kernels on the host emulator: a library that tests/ascend/*.py loads, and the emulator's own tests.
add_library(mmx_ascend_emulated SHARED tests/ascend/emulated.cpp)
mmx_warnings(mmx_ascend_emulated)
target_include_directories(mmx_ascend_emulated PRIVATE ${PROJECT_SOURCE_DIR}/tests/ascend/emulator)
target_compile_options(mmx_ascend_emulated PRIVATE -O2)

file(GLOB MMX_EMULATOR_TESTS CONFIGURE_DEPENDS tests/ascend/test_*.cpp)
foreach(source ${MMX_EMULATOR_TESTS})
    get_filename_component(name ${source} NAME_WE)
    add_executable(ascend_${name} ${source})
    mmx_warnings(ascend_${name})
    target_include_directories(ascend_${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests/ascend/emulator)
    add_test(NAME ascend_${name} COMMAND ascend_${name})
endforeach()
