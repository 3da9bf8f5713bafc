// HDF5 files through the serial C API: RAII, rows instead of hyperslabs, our element types, and
// one-line errors instead of the library's stack print.
//
// Every call takes one process-wide lock, so that a reader thread works with any build of the
// library. Errors: exit 3 when a file cannot be opened or read; exit 1 when it cannot be written
// ("No space left on device" included); both name the file and the library's reason.
//
// bfloat16 has no HDF5 type: such a dataset is uint16 with the attribute dtype = "bfloat16".
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/buffer_view.h"
#include "base/range.h"

namespace megadict {

struct Hdf5Dataset {
  std::vector<int64_t> shape;
  DType dtype = DType::f32;
  bool little_endian = true;
  std::vector<int64_t> chunk;  // empty = contiguous
  bool fletcher32 = false;
  bool other_filters = false;  // compression, shuffle, ...
  bool elsewhere = false;      // external link or storage; describe() refuses it
  int64_t rows() const { return shape.empty() ? 1 : shape[0]; }
  int64_t row_elements() const;
};

class Hdf5File {
 public:
  static Hdf5File open(const std::string& path);  // read only
  // Replaces an existing file. Messages say `shown_path` where one is given (`path` is temporary).
  static Hdf5File create(const std::string& path, const std::string& shown_path = "");
  Hdf5File(Hdf5File&&) noexcept;
  Hdf5File& operator=(Hdf5File&&) noexcept;
  ~Hdf5File();

  const std::string& path() const;
  // Writes everything out and closes; a failure to do so throws (the destructor keeps quiet).
  void close();

  bool has(const std::string& dataset) const;
  std::vector<std::string> dataset_names() const;  // of the whole file, sorted
  Hdf5Dataset describe(const std::string& dataset) const;

  // Attributes of a group or dataset ("/" = the file). Empty where absent or of another kind.
  std::optional<std::string> text(const std::string& object, const std::string& name) const;
  std::optional<int64_t> integer(const std::string& object, const std::string& name) const;
  std::optional<double> real(const std::string& object, const std::string& name) const;
  void set(const std::string& object, const std::string& name, const std::string& value);
  void set(const std::string& object, const std::string& name, int64_t value);
  void set(const std::string& object, const std::string& name, double value);

  // `chunk_rows` > 0 makes a chunked dataset that extend() can lengthen; 0 a contiguous one.
  void create_dataset(const std::string& dataset, const std::vector<int64_t>& shape, DType dtype,
                      int64_t chunk_rows = 0, bool fletcher32 = false);
  void extend(const std::string& dataset, int64_t rows);
  // Rows along the first dimension, converted between the file's and the buffer's element type
  // (bf16 converts to nothing else). buffer.count == rows.size() * row_elements().
  void write_rows(const std::string& dataset, Range rows, ConstBufferView buffer);
  void read_rows(const std::string& dataset, Range rows, BufferView buffer) const;
  // The same with all leading dimensions flattened into rows of the last one; [n] is n rows of one
  // element.
  void read_flattened(const std::string& dataset, Range rows, BufferView buffer) const;
  // extend() by the rows in `buffer`, then write them.
  void append_rows(const std::string& dataset, ConstBufferView buffer);

  // A chunk as stored, its Fletcher-32 checksum included: no filter runs. `first_row` is a multiple
  // of the chunk's rows. read_chunk refuses (exit 3) a chunk that is missing, of another stored
  // size, or written without its filters.
  void write_chunk(const std::string& dataset, int64_t first_row, std::span<const std::byte> bytes);
  void read_chunk(const std::string& dataset, int64_t first_row, std::span<std::byte> bytes) const;
  // Where in the file that chunk begins. Exit 3 when it is missing.
  int64_t chunk_offset(const std::string& dataset, int64_t first_row) const;

 private:
  struct State;
  explicit Hdf5File(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace megadict
