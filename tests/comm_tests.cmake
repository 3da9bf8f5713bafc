add_library(megadict_mpi_main STATIC support/mpi_main.cpp support/test_device_cpu.cpp)
target_include_directories(megadict_mpi_main PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
target_link_libraries(megadict_mpi_main PUBLIC megadict_comm GTest::gtest fmt::fmt)

# communicator_nccl.cpp on host memory and MPI. A test that names it among its ROOMS (beside comm)
# has a NCCL world: the objects come before megadict_comm, so its own NCCL part is not linked.
add_library(megadict_comm_standin OBJECT
  ${CMAKE_SOURCE_DIR}/src/comm/communicator_nccl.cpp support/test_device_cuda.cpp
  support/nccl_standin/standin_cuda.cpp support/nccl_standin/standin_nccl.cpp
  support/nccl_standin/standin_operation.cpp)
target_include_directories(megadict_comm_standin BEFORE PRIVATE support/nccl_standin
                           PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
target_link_libraries(megadict_comm_standin PUBLIC megadict_comm)

foreach(test collectives mesh)
  megadict_test(comm_${test}_test SOURCES comm_${test}_test.cpp ROOMS comm RANKS 1 2 3 4 6 LABELS comm)
  megadict_test(comm_${test}_nccl_test SOURCES comm_${test}_test.cpp ROOMS comm comm_standin
                RANKS 1 2 3 4 6 LABELS comm)
endforeach()
megadict_test(comm_host_memory_test SOURCES comm_host_memory_test.cpp ROOMS comm RANKS 1 2 3 4 6
              LABELS comm)
megadict_test(comm_nccl_test SOURCES comm_nccl_test.cpp ROOMS comm comm_standin RANKS 1 2 3 4 6
              LABELS comm)
target_include_directories(comm_nccl_test BEFORE PRIVATE support)
megadict_test(comm_agree_test SOURCES comm_agree_test.cpp ROOMS comm RANKS 1 2 3 4 6 LABELS comm)
megadict_test(comm_launch_test SOURCES comm_launch_test.cpp ROOMS comm RANKS 1 2 3 LABELS comm)

# Whole jobs with a planted fault, started by tests that run alone.
function(megadict_fault_test name)
  cmake_parse_arguments(T "" "" "SOURCES;PROGRAMS" ${ARGN})
  megadict_test(${name} SOURCES ${T_SOURCES} ROOMS base TIMEOUT 300 LABELS comm)
  list(JOIN MEGADICT_MPIEXEC_FLAGS " " flags)
  target_compile_definitions(${name} PRIVATE MEGADICT_TEST_MPIEXEC="${MEGADICT_MPIEXEC} ${flags}")
  foreach(program IN LISTS T_PROGRAMS)
    string(REPLACE "=" ";" pair ${program})
    list(GET pair 0 variable)
    list(GET pair 1 target)
    add_dependencies(${name} ${target})
    target_compile_definitions(${name} PRIVATE ${variable}="$<TARGET_FILE:${target}>")
  endforeach()
  set_tests_properties(${name} PROPERTIES ENVIRONMENT "${MEGADICT_TEST_ENV}" PROCESSORS 3)
endfunction()

add_executable(comm_fault_program support/comm_fault_program.cpp support/test_device_cpu.cpp)
add_executable(comm_fault_program_nccl support/comm_fault_program.cpp)
add_executable(nccl_fault_program support/nccl_fault_program.cpp)
target_include_directories(nccl_fault_program BEFORE PRIVATE support support/nccl_standin)
foreach(program comm_fault_program comm_fault_program_nccl nccl_fault_program)
  target_include_directories(${program} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  if(program MATCHES nccl)
    target_link_libraries(${program} PRIVATE megadict_comm_standin)
  endif()
  target_link_libraries(${program} PRIVATE megadict_comm)
endforeach()
megadict_fault_test(comm_faults_test SOURCES comm_faults_test.cpp
                    PROGRAMS MEGADICT_TEST_PROGRAM=comm_fault_program)
megadict_fault_test(comm_nccl_faults_test SOURCES comm_nccl_faults_test.cpp
                    PROGRAMS MEGADICT_TEST_PROGRAM=comm_fault_program_nccl
                             MEGADICT_NCCL_FAULT_PROGRAM=nccl_fault_program)
