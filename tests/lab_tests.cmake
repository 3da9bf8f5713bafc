foreach(part tiles small_sae gradient_codes dictionary_learning flops)
  megadict_test(lab_${part}_test SOURCES lab_${part}_test.cpp ROOMS lab LABELS lab)
endforeach()
megadict_test(lab_problem_test SOURCES lab_problem_test.cpp ROOMS lab LABELS lab TORCH)
