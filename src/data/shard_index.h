// A data set: one or more activation shards with a global row index, in the
// order of their sorted names.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/buffer_view.h"
#include "base/range.h"

namespace megadict {

struct ShardInfo {
  std::string path;
  Range rows;              // global rows
  int64_t chunk_rows = 0;  // rows per HDF5 chunk
  uint64_t checksum = 0;   // of the file's own table of chunk checksums, for the fingerprint
  bool has_tokens = false, has_position = false, has_document = false, has_norm = false;
};

struct DatasetFacts {
  int64_t width = 0;
  DType dtype = DType::f32;
  std::string model, hook, tokenizer;
  int64_t layer = -1;
};

// A contiguous run of rows stored together; the unit of reading and of epoch shuffling.
struct Chunk {
  int32_t shard = 0;
  Range rows;  // global
};

// Paths of the shards a folder (DIR/*.h5, without its eval/) or glob names, sorted. Exit 3 where
// there is none.
std::vector<std::string> find_shards(const std::string& path_or_glob);

class ShardIndex {
 public:
  // Opens every shard's header. Exit 3 with file names for: nothing found, short or corrupt file,
  // zero rows, shards that disagree (both names).
  static ShardIndex open(const std::string& path_or_glob);

  int64_t rows() const;
  int64_t width() const { return facts_.width; }
  const DatasetFacts& facts() const { return facts_; }
  const std::vector<ShardInfo>& shards() const { return shards_; }
  const std::vector<Chunk>& chunks() const { return chunks_; }
  // The same shard is read at another path from here on, a copy under the same name.
  void move_shard(int32_t shard, const std::string& path);
  // 16 hex digits over names (without folder), rows, dtype, width and checksums.
  std::string fingerprint() const;

 private:
  DatasetFacts facts_;
  std::vector<ShardInfo> shards_;
  std::vector<Chunk> chunks_;
};

}  // namespace megadict
