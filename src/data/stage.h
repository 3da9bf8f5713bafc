// Shards copied to a disk of this node, before a run reads them over and over: FOLDER/FINGERPRINT/
// NUMBER/NAME. A copy has its name once it is whole and on disk, so that a run which starts again
// on this node goes on with what is there; nobody removes them but the user or the site.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data/batch_plan.h"
#include "data/shard_index.h"
#include "io/file.h"

namespace megadict {

// The shards whose rows the plan's steps use, ascending. Rows are shuffled over the whole data set,
// so that a run of one pass needs all of them on every node.
std::vector<int32_t> shards_needed(const ShardIndex& index, const BatchPlan& plan);

// Where the copy of a shard is.
std::string staged_path(const ShardIndex& index, int32_t shard, const std::string& folder);
// The index with these shards read at their copies.
ShardIndex staged_index(const ShardIndex& index, const std::vector<int32_t>& shards,
                        const std::string& folder);

// Copies shards, a while at a time. One process a node; another job that copies the same data set
// to the same folder is waited for.
class ShardStage {
 public:
  // Makes the folder. Exit 1 where that fails or the missing shards are larger than what is free.
  ShardStage(const ShardIndex& index, std::vector<int32_t> shards, const std::string& folder);
  ~ShardStage();

  int64_t bytes_missing() const;
  // Copies for about so long, in whole blocks. Exit 1 for a full disk, 3 for a shard that cannot
  // be read or is no longer what the index saw.
  void copy(double seconds);

 private:
  struct Copy;  // of one shard, under way
  bool is_staged(int32_t shard) const;
  void find_missing();
  void copy_block();

  const ShardIndex& index_;
  std::vector<int32_t> shards_, missing_;  // the last of missing_ is copied first
  std::string folder_, set_folder_;
  FolderLock lock_;  // of set_folder_
  std::unique_ptr<Copy> under_way_;
};

}  // namespace megadict
