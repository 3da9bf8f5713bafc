// NumPy's .npy files, versions 1 to 3 (formats.md section 3). Refused (exit 3, with the reason):
// Fortran order, big-endian numbers, Python objects, truncated files.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/buffer_view.h"
#include "base/range.h"
#include "io/file.h"

namespace megadict {

class NpyFile {
 public:
  static NpyFile open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  DType dtype() const { return dtype_; }
  const std::vector<int64_t>& shape() const { return shape_; }
  // With all leading dimensions flattened into rows of the last one; [n] is n rows of one element.
  int64_t rows() const;
  int64_t row_elements() const;
  // to.dtype == dtype() (or another type of the same size), to.count == rows.size()*row_elements().
  void read_rows(Range rows, BufferView to) const;

 private:
  explicit NpyFile(RandomAccessFile file) : file_(std::move(file)) {}
  RandomAccessFile file_;
  DType dtype_ = DType::f32;
  std::vector<int64_t> shape_;
  int64_t data_begin_ = 0;
};

}  // namespace megadict
