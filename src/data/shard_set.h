// Writing whole data sets: many shards in a folder that appears only when everything in it is
// complete.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "data/shard_writer.h"

namespace megadict {

// A folder under construction: files go into path(), commit() gives it its name. Without commit()
// it is removed with all its files.
class StagedFolder {
 public:
  // Exit 2 where `final_path` exists and is not an empty folder.
  explicit StagedFolder(const std::string& final_path);
  ~StagedFolder();
  StagedFolder(const StagedFolder&) = delete;
  StagedFolder& operator=(const StagedFolder&) = delete;

  const std::string& path() const { return path_; }
  void commit();

 private:
  std::string final_path_, path_;
  bool committed_ = false;
};

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
