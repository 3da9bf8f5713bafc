// NumPy's .npy files, versions 1 to 3. Refused (exit 3, with the reason):
// Fortran order, big-endian numbers, Python objects, truncated files.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/buffer_view.h"
#include "base/range.h"
#include "io/file.h"

namespace megadict {

// An array inside a file.
struct NpyHeader {
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  int64_t data_begin = 0;  // in the file; the data are there in full
  int64_t elements() const;
};
// Of the array that is stored in `bytes` of a file; `name` is for the message.
NpyHeader read_npy_header(const RandomAccessFile& file, Range bytes, const std::string& name);
// What comes before the data of a row-major array of floats or integers.
std::string npy_header_text(DType dtype, const std::vector<int64_t>& shape);

class NpyFile {
 public:
  static NpyFile open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  DType dtype() const { return header_.dtype; }
  const std::vector<int64_t>& shape() const { return header_.shape; }
  // With all leading dimensions flattened into rows of the last one; [n] is n rows of one element.
  int64_t rows() const;
  int64_t row_elements() const;
  // to.dtype == dtype() (or another type of the same size), to.count == rows.size()*row_elements().
  void read_rows(Range rows, BufferView to) const;

 private:
  explicit NpyFile(RandomAccessFile file) : file_(std::move(file)) {}
  RandomAccessFile file_;
  NpyHeader header_;
};

}  // namespace megadict
