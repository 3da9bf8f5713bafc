// safetensors files: u64 little-endian header length, a JSON header, then the tensors' bytes
// without holes. Files from elsewhere are treated as hostile: nothing is allocated
// before the file's size allows it, every offset is checked.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/buffer_view.h"
#include "base/range.h"
#include "io/file.h"

namespace megadict {

struct SafetensorsEntry {
  std::string name;
  std::string stored_dtype;    // as in the file: "F32", "BF16", "I8", ...
  std::optional<DType> dtype;  // empty where we have no such type (I8, I16, BOOL, F8_*)
  std::vector<int64_t> shape;
  int64_t begin = 0, end = 0;  // bytes in the data part
  int64_t elements() const;
};

using SafetensorsMetadata = std::map<std::string, std::string>;

class SafetensorsFile {
 public:
  // Exit 3 with the path for whatever is wrong with the file.
  static SafetensorsFile open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }  // in data order
  const SafetensorsMetadata& metadata() const { return metadata_; }
  const SafetensorsEntry* find(const std::string& name) const;  // nullptr if absent
  // Exit 3 naming the file and the tensors it does hold.
  const SafetensorsEntry& at(const std::string& name) const;

  // The tensor's bytes; to.dtype and to.count must be the entry's own.
  void read(const SafetensorsEntry& entry, BufferView to) const;
  // Some rows of its first dimension.
  void read_rows(const SafetensorsEntry& entry, Range rows, BufferView to) const;
  // Some of its elements in row-major order.
  void read_elements(const SafetensorsEntry& entry, Range elements, BufferView to) const;
  // Its bytes [begin, end), for element types we have no name for.
  void read_bytes(const SafetensorsEntry& entry, Range bytes, void* to) const;
  // Any float tensor as float32; to.count as above.
  std::vector<float> read_as_float(const SafetensorsEntry& entry) const;

 private:
  SafetensorsFile(RandomAccessFile file) : file_(std::move(file)) {}
  RandomAccessFile file_;
  int64_t data_begin_ = 0;
  std::vector<SafetensorsEntry> entries_;
  SafetensorsMetadata metadata_;
};

struct TensorToWrite {
  std::string name;
  std::vector<int64_t> shape;
  ConstBufferView data;  // CPU memory, row-major
};

// Atomic. Tensors are laid out by element size (largest first, so that each is aligned), then in
// the order given.
void write_safetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                       const SafetensorsMetadata& metadata = {});

}  // namespace megadict
