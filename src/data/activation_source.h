// Activation files from elsewhere, as rows: .npy, safetensors, HDF5.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/buffer_view.h"
#include "base/range.h"

namespace megadict {

// What the user may have to say about a file.
struct SourceOptions {
  std::string dataset;  // HDF5: the dataset; "" = 'activations', else the only one of floats
  std::string tensor;   // safetensors: the tensor; "" = the only one of floats with rank 2 or more
  std::string dtype;    // "bfloat16": 16-bit unsigned integers are bfloat16
};

// One opened file. Rows are [.., d] with the leading dimensions flattened.
struct ActivationSource {
  std::string path;
  int64_t rows = 0, width = 0;
  DType dtype = DType::f32;  // in which read() yields: f32, f16 or bf16
  bool was_float64 = false;  // read() rounds to float32

  // [rows.size(), width] of dtype.
  std::function<void(Range rows, void* to)> read;
  // tokens, position or document of every row; empty where the file has none. Exit 3 for values
  // that are no unsigned 32-bit integers.
  std::function<std::vector<uint32_t>(const std::string& name)> column;
  // One byte a row, 0 = the row is padding; empty where the file has none.
  std::function<std::vector<uint8_t>()> mask;
};

// By the file's ending: .npy, .safetensors, .h5 or .hdf5. Exit 3 for what cannot be read, exit 2
// for another ending or when it is unclear which dataset or tensor is meant.
ActivationSource open_source(const std::string& path, const SourceOptions& options);

}  // namespace megadict
