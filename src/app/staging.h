// data.stage_dir: every node copies the shards it will read to a disk of its own, once.
#pragma once

#include <string>
#include <vector>

#include "comm/launch.h"
#include "data/shard_index.h"

namespace megadict {

// Copies these shards of `index`, one rank of each node for all of its ranks, and has them read
// there. Exit 2 where `folder` is that of the shards; 1 where a node's disk has no room for them,
// before any is copied. Collective over world.
void stage_shards(Launch& launch, const std::string& folder, const std::vector<int32_t>& shards,
                  ShardIndex& index);

}  // namespace megadict
