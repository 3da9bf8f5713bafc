add_library(megadict_mpi_main STATIC support/mpi_main.cpp)
target_include_directories(megadict_mpi_main PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
target_link_libraries(megadict_mpi_main PUBLIC megadict_comm GTest::gtest fmt::fmt)

foreach(test collectives mesh)
  megadict_test(comm_${test}_test SOURCES comm_${test}_test.cpp ROOMS comm RANKS 1 2 3 4 6 LABELS comm)
endforeach()
megadict_test(comm_launch_test SOURCES comm_launch_test.cpp ROOMS comm RANKS 1 2 3 LABELS comm)
