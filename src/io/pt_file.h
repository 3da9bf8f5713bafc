// Tensors in PyTorch's files (.pt, as torch.save writes them since version 1.6): a zip archive with
// a pickle and one record per storage. Files from elsewhere are hostile: the
// pickle is read by a parser that knows tensors, numbers and texts and executes nothing.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/buffer_view.h"
#include "io/safetensors.h"
#include "io/zip_file.h"

namespace megadict {

struct PtTensor {
  std::string name;  // keys of dictionaries within dictionaries are joined by '/'
  DType dtype = DType::f32;
  std::vector<int64_t> shape, strides;
  int64_t offset = 0;  // of its first element in the record
  ZipEntry record;
  int64_t elements() const;
};

class PtFile {
 public:
  // Exit 3 with the path for whatever is wrong with the file.
  static PtFile open(const std::string& path);

  const std::string& path() const { return zip_.path(); }
  const std::vector<PtTensor>& tensors() const { return tensors_; }  // in the file's order
  const std::map<std::string, std::string>& texts() const { return texts_; }
  // Its elements in row-major order, whatever their strides; floats and integers as float.
  void read_as_float(const PtTensor& tensor, float* to) const;

 private:
  explicit PtFile(ZipFile zip) : zip_(std::move(zip)) {}
  ZipFile zip_;
  std::vector<PtTensor> tensors_;
  std::map<std::string, std::string> texts_;
};

struct PtToWrite {
  std::vector<TensorToWrite> tensors;
  std::map<std::string, std::string> texts = {};
  std::vector<std::string> empty_dicts = {};
};

// One dictionary, as torch.load(path, weights_only=True) takes it. Atomic.
void write_pt(const std::string& path, const PtToWrite& what);

}  // namespace megadict
