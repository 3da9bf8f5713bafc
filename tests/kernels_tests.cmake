megadict_test(kernels_test SOURCES kernels_test.cpp ROOMS kernels TORCH)
megadict_test(kernels_screen_test SOURCES kernels_screen_test.cpp ROOMS kernels
  TIMEOUT 300 LABELS kernels TORCH)
megadict_test(kernels_tile_test SOURCES kernels_tile_test.cpp ROOMS kernels LABELS kernels TORCH)
megadict_test(kernels_vector_ops_test SOURCES kernels_vector_ops_test.cpp ROOMS kernels LABELS kernels TORCH)
