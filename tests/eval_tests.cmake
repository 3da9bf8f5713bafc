foreach(part metrics assignment matching comparison pursuit)
  megadict_test(eval_${part}_test SOURCES eval_${part}_test.cpp ROOMS eval LABELS eval TORCH)
endforeach()
megadict_test(eval_metrics_reduce_test SOURCES eval_metrics_reduce_test.cpp ROOMS eval
  RANKS 1 2 3 4 6 LABELS eval TORCH)
megadict_test(eval_evaluate_test SOURCES eval_evaluate_test.cpp ROOMS eval
  RANKS 1 2 3 4 6 TIMEOUT 240 LABELS eval TORCH)
megadict_test(eval_files_test SOURCES eval_files_test.cpp ROOMS eval
  RANKS 1 2 3 4 6 TIMEOUT 240 LABELS eval TORCH)
megadict_test(eval_inference_test SOURCES eval_inference_test.cpp ROOMS eval
  RANKS 1 2 3 4 6 TIMEOUT 240 LABELS eval TORCH)
