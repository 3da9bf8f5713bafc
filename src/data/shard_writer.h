// Writes one shard (data/shard_file.h) row by row in constant memory. The file appears under its
// name only when it is complete.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/shard_index.h"
#include "io/hdf5_file.h"

namespace megadict {

// Rows to write. A column that is present must be present in every call for the same shard.
struct ShardRows {
  const void* activations = nullptr;  // [count, width] of the data set's element type
  int64_t count = 0;
  const uint32_t* tokens = nullptr;  // [count] each
  const uint32_t* position = nullptr;
  const uint32_t* document = nullptr;
};

class ShardWriter {
 public:
  // `chunk_rows` 0 chooses chunks of about half a MiB.
  ShardWriter(const std::string& path, const DatasetFacts& facts, int64_t chunk_rows = 0);
  ~ShardWriter();  // without finish(): nothing remains
  ShardWriter(ShardWriter&&) = delete;

  // Exit 3 for a row that is not finite (numbered from the first row of this shard); exit 1 when
  // the disk is full.
  void append(const ShardRows& rows);
  int64_t rows() const { return rows_; }
  // Exit 3 when no row was written.
  void finish();

 private:
  struct Column {
    const char* name;
    std::vector<uint32_t> values;  // not yet written
    bool used = false;
  };
  void create_datasets(int64_t chunk_rows);
  void write_buffered();

  std::string path_, temporary_;
  DatasetFacts facts_;
  int64_t chunk_rows_, row_bytes_;
  int64_t rows_ = 0, written_ = 0;
  std::optional<Hdf5File> file_;
  std::vector<std::byte> buffer_;  // up to one chunk
  std::vector<float> norms_;
  std::vector<uint32_t> checksums_;
  Column columns_[3] = {{"tokens", {}, false}, {"position", {}, false}, {"document", {}, false}};
};

// Rows per chunk for a row of `row_bytes` bytes: the largest count within half a MiB, at least 1.
int64_t default_chunk_rows(int64_t row_bytes);

}  // namespace megadict
