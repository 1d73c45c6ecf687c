# The AscendC kernels on the host emulator: a library that tests/ascend/*.py loads, and the emulator's own tests.
function(mmx_emulator target)
    mmx_warnings(${target})
    target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/tests/ascend/emulator)
    # Why the -Wno: gcc 12 warns of its own std::string operator+ (gcc bug 105651).
    target_compile_options(${target} PRIVATE -O2 -Wno-restrict)
endfunction()

add_library(mmx_ascend_emulated SHARED tests/ascend/emulated.cpp)
mmx_emulator(mmx_ascend_emulated)

file(GLOB MMX_EMULATOR_TESTS CONFIGURE_DEPENDS tests/ascend/test_*.cpp)
foreach(source ${MMX_EMULATOR_TESTS})
    get_filename_component(name ${source} NAME_WE)
    add_executable(ascend_${name} ${source})
    mmx_emulator(ascend_${name})
    add_test(NAME ascend_${name} COMMAND ascend_${name})
endforeach()
