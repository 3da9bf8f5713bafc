// Writing whole data sets.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "data/shard_writer.h"

namespace megadict {

// Rows one after the other into FOLDER/shard_000000.h5, shard_000001.h5, ...
class ShardSetWriter {
 public:
  // `shard_rows` 0: shards of about 1 GiB.
  ShardSetWriter(const std::string& folder, const DatasetFacts& facts, int64_t shard_rows = 0);

  void append(const ShardRows& rows);
  int64_t rows() const { return rows_; }
  // Nothing is written where no row came.
  void finish();

 private:
  std::string folder_;
  DatasetFacts facts_;
  int64_t shard_rows_, rows_ = 0, shards_ = 0;
  std::unique_ptr<ShardWriter> current_;
};

}  // namespace megadict
