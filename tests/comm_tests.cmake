add_library(megadict_mpi_main STATIC support/mpi_main.cpp)
target_include_directories(megadict_mpi_main PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
target_link_libraries(megadict_mpi_main PUBLIC megadict_comm GTest::gtest fmt::fmt)

foreach(test collectives mesh)
  megadict_test(comm_${test}_test SOURCES comm_${test}_test.cpp ROOMS comm RANKS 1 2 3 4 6 LABELS comm)
endforeach()
megadict_test(comm_launch_test SOURCES comm_launch_test.cpp ROOMS comm RANKS 1 2 3 LABELS comm)

# Whole jobs with a planted fault.
add_executable(comm_fault_program support/comm_fault_program.cpp)
target_link_libraries(comm_fault_program PRIVATE megadict_comm)
megadict_test(comm_faults_test SOURCES comm_faults_test.cpp ROOMS base TIMEOUT 300 LABELS comm)
add_dependencies(comm_faults_test comm_fault_program)
list(JOIN MEGADICT_MPIEXEC_FLAGS " " flags)
target_compile_definitions(comm_faults_test PRIVATE
  MEGADICT_TEST_MPIEXEC="${MEGADICT_MPIEXEC} ${flags}"
  MEGADICT_TEST_PROGRAM="$<TARGET_FILE:comm_fault_program>")
set_tests_properties(comm_faults_test PROPERTIES ENVIRONMENT "${MEGADICT_TEST_ENV}" PROCESSORS 3)
