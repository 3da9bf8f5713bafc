megadict_test(train_parity_test SOURCES train_parity_test.cpp ROOMS train
  RANKS 1 2 3 4 6 TIMEOUT 600 LABELS train TORCH)
target_compile_definitions(train_parity_test PRIVATE MEGADICT_SOURCE_DIR="${CMAKE_SOURCE_DIR}")

megadict_test(train_overlap_test SOURCES train_overlap_test.cpp ROOMS train
  RANKS 1 2 3 4 6 TIMEOUT 600 LABELS train TORCH)

# Over the NCCL communicator on its host-memory stand-in: 1x2, 2x1, all of 4 and 6.
megadict_test(train_deterministic_test SOURCES train_deterministic_test.cpp ROOMS train
              RANKS 1 2 3 4 6 TIMEOUT 600 LABELS train TORCH)
megadict_test(train_nccl_test SOURCES train_nccl_test.cpp ROOMS comm comm_standin train
  RANKS 2 4 6 LABELS train TORCH)

# Counts allocations: its own operator new, which the sanitizers' would hide.
megadict_test(train_memory_test SOURCES train_memory_test.cpp ROOMS comm train LABELS train no_asan TORCH)

# Counts the bytes of tensors: its own allocator.
megadict_test(train_tensor_memory_test SOURCES train_tensor_memory_test.cpp ROOMS comm train LABELS train TORCH)

megadict_test(train_latent_parameters_test SOURCES train_latent_parameters_test.cpp ROOMS comm train LABELS train TORCH)

megadict_test(train_isa_choice_test SOURCES train_isa_choice_test.cpp ROOMS train LABELS train TORCH)

megadict_test(train_overlap_nccl_test SOURCES train_overlap_test.cpp ROOMS comm comm_standin train
  RANKS 4 TIMEOUT 600 LABELS train TORCH)

megadict_test(train_resample_test SOURCES train_resample_test.cpp ROOMS train
  RANKS 1 2 3 4 6 TIMEOUT 600 LABELS train TORCH)

megadict_test(train_dead_test SOURCES train_dead_test.cpp ROOMS train
  RANKS 1 2 3 4 6 TIMEOUT 300 LABELS train TORCH)

megadict_test(train_checkpoint_test SOURCES train_checkpoint_test.cpp ROOMS train LABELS train TORCH)
