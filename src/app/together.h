// Small things that all ranks do together while a command starts.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "comm/launch.h"
#include "data/shard_index.h"

namespace megadict {

// Runs `work` on rank 0, then on the others: an error that all would meet is met, and printed,
// once. Errors are agreed (comm/agree.h). Collective over world.
void rank_zero_first(Communicator& world, const std::function<void()>& work);

// Rank 0's text on every rank. Collective. `name` is a string literal.
std::string broadcast_text(Communicator& world, const std::string& text, const char* name);

// What rank 0 finds, on every rank: what it looks at may change meanwhile. Collective.
std::string rank_zero_finds(Communicator& world, const std::function<std::string()>& find,
                            const char* name);

// Exit 3 on a rank that sees other shards under `path` than rank 0: they are being written, or are
// not the same everywhere. Collective.
void refuse_other_shards(Communicator& world, const ShardIndex& index, const std::string& path);

// Exit 2 where `folder`, the value of the field `name`, is that of the shards. Agreed.
void refuse_folder_of_shards(const ShardIndex& index, const char* name, const std::string& folder);

// Exit 2 where rank 0 cannot write one of these files ("" = none is wanted), or make this folder:
// before any work. Collective.
void refuse_output_files(Communicator& world, const std::vector<std::string>& paths);
void refuse_output_folder(Communicator& world, const std::string& path);

// Exit 2 where one of these files ("" = none) is a shard. Agreed.
void refuse_outputs_among(const ShardIndex& index, const std::vector<std::string>& paths);

// Each rank's part of a vector, one after the other, on every rank. Collective.
std::vector<float> gather_parts(Communicator& world, const std::vector<float>& mine,
                                const char* name);

struct RankRecord {
  int rank = 0, node = 0, local_rank = 0, cpus = 0, threads = 0;
  std::string host;
};

// Who runs where, in rank order. Collective.
std::vector<RankRecord> gather_ranks(Launch& launch, int threads);
// A heading and one line a rank.
std::string rank_table(const std::vector<RankRecord>& ranks);

}  // namespace megadict
