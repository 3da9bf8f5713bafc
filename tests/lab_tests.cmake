megadict_test(lab_tiles_test SOURCES lab_tiles_test.cpp ROOMS lab LABELS lab)
megadict_test(lab_small_sae_test SOURCES lab_small_sae_test.cpp ROOMS lab LABELS lab)
megadict_test(lab_gradient_codes_test SOURCES lab_gradient_codes_test.cpp ROOMS lab LABELS lab)
