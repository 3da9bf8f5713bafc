// NumPy's .npz archives: .npy files in an uncompressed zip.
#pragma once

#include <string>
#include <vector>

#include "io/npy.h"
#include "io/safetensors.h"
#include "io/zip_file.h"

namespace megadict {

struct NpzArray {
  std::string name;  // without ".npy"
  NpyHeader header;
};

class NpzFile {
 public:
  // Exit 3 with the path for whatever is wrong with the file.
  static NpzFile open(const std::string& path);

  const std::string& path() const { return zip_.path(); }
  const std::vector<NpzArray>& arrays() const { return arrays_; }
  // An array of floats as float32. Exit 3 for another type.
  void read_as_float(const NpzArray& array, float* to) const;

 private:
  explicit NpzFile(ZipFile zip) : zip_(std::move(zip)) {}
  ZipFile zip_;
  std::vector<NpzArray> arrays_;
};

// Atomic.
void write_npz(const std::string& path, const std::vector<TensorToWrite>& arrays);

}  // namespace megadict
