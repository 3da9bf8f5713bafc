megadict_test(eval_metrics_test SOURCES eval_metrics_test.cpp ROOMS eval TORCH)
if(TARGET megadict_mpi_main)
  megadict_test(eval_metrics_reduce_test SOURCES eval_metrics_reduce_test.cpp ROOMS eval
    RANKS 1 2 3 4 6 TORCH)
endif()
megadict_test(eval_assignment_test SOURCES eval_assignment_test.cpp ROOMS eval TORCH)
megadict_test(eval_matching_test SOURCES eval_matching_test.cpp ROOMS eval TORCH)
