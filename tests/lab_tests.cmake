foreach(part tiles small_sae gradient_codes flops)
  megadict_test(lab_${part}_test SOURCES lab_${part}_test.cpp ROOMS lab LABELS lab)
endforeach()
