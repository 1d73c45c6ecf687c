# Tests without torch and without a device: core vocabulary and pure host functions.
file(GLOB MMX_CPP_TESTS CONFIGURE_DEPENDS tests/cpp/test_*.cpp)
foreach(source ${MMX_CPP_TESTS})
    get_filename_component(name ${source} NAME_WE)
    add_executable(${name} ${source})
    mmx_warnings(${name})
    target_link_libraries(${name} PRIVATE mmx_cpu)
    add_test(NAME ${name} COMMAND ${name})
endforeach()
