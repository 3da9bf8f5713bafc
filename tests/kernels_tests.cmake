megadict_test(kernels_test SOURCES kernels_test.cpp ROOMS kernels TORCH)
