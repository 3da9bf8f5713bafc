foreach(part file idx_file json_lines fletcher32 hdf5_file safetensors npy hostile)
  megadict_test(io_${part}_test SOURCES io_${part}_test.cpp ROOMS io LABELS io)
endforeach()
