# Tests of the sources themselves: tidy.py, and that every header compiles alone.
find_package(Python3 3.10 REQUIRED COMPONENTS Interpreter)
add_test(NAME tidy COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/tidy.py
                           --compile-commands ${CMAKE_BINARY_DIR}/compile_commands.json)
set_tests_properties(tidy PROPERTIES TIMEOUT 60 LABELS infra)

# One source per header that includes nothing else, without the precompiled header. Built by the
# test and not before, so that a plain build does not pay for it; the compiler cache does.
file(GLOB_RECURSE headers RELATIVE ${CMAKE_SOURCE_DIR}/src CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/*.h)
foreach(header IN LISTS headers)
  set(alone ${CMAKE_CURRENT_BINARY_DIR}/headers/${header}.cpp)
  file(GENERATE OUTPUT ${alone} CONTENT "#include \"${header}\"\n#include \"${header}\"\n")
  list(APPEND headers_alone ${alone})
endforeach()
add_library(headers OBJECT EXCLUDE_FROM_ALL ${headers_alone})
target_compile_options(headers PRIVATE -O0)
target_link_libraries(headers PRIVATE megadict_flags megadict_torch)
foreach(room base io comm kernels data model eval train lab app)
  if(TARGET megadict_${room})
    target_link_libraries(headers PRIVATE megadict_${room})
  endif()
endforeach()
add_test(NAME headers COMMAND ${CMAKE_COMMAND} --build ${CMAKE_BINARY_DIR} --target headers)
set_tests_properties(headers PROPERTIES TIMEOUT 1200 PROCESSORS 2 LABELS "infra;no_asan")
