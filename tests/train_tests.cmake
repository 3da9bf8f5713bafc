megadict_test(train_parity_test SOURCES train_parity_test.cpp ROOMS train
  RANKS 1 2 3 4 6 LABELS train TORCH)
