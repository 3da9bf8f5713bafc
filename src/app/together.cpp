#include "app/together.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "app/field.h"
#include "base/error.h"
#include "base/range.h"
#include "comm/agree.h"
#include "io/file.h"
#include "io/output_path.h"

namespace megadict {

namespace {

// What travels of a RankRecord: fixed size, so that one all-gather moves all of them.
struct WireRecord {
  int32_t rank, node, local_rank, cpus, threads;
  char host[108];
};

}  // namespace

void rank_zero_first(Communicator& world, const std::function<void()>& work) {
  agree(world, [&] {
    if (world.rank() == 0) work();
  });
  agree(world, [&] {
    if (world.rank() != 0) work();
  });
}

std::string broadcast_text(Communicator& world, const std::string& text, const char* name) {
  auto size = static_cast<int64_t>(text.size());
  world.broadcast(view_of(&size, 1), 0, name);
  std::vector<uint8_t> bytes(static_cast<size_t>(size));
  if (world.rank() == 0) std::copy(text.begin(), text.end(), bytes.begin());
  world.broadcast(view_of(bytes.data(), size), 0, name);
  return {bytes.begin(), bytes.end()};
}

std::string rank_zero_finds(Communicator& world, const std::function<std::string()>& find,
                            const char* name) {
  std::string found;
  agree(world, [&] {
    if (world.rank() == 0) found = find();
  });
  return broadcast_text(world, found, name);
}

void refuse_other_shards(Communicator& world, const ShardIndex& index, const std::string& path) {
  std::string mine;
  for (const ShardInfo& shard : index.shards())
    mine += fmt::format("{} {} {}\n", file_name(shard.path), shard.rows.size(), shard.chunk_rows);
  const std::string theirs = broadcast_text(world, mine, "shards");
  agree(world, [&] {
    if (mine != theirs)
      fail(ExitCode::bad_data,
           fmt::format("rank {} sees {} shards with {} rows in {}, rank 0 others", world.rank(),
                       index.shards().size(), index.rows(), in_quotes(path)),
           "start when the data set is complete, from a folder that is the same on every node");
  });
}

void refuse_folder_of_shards(const ShardIndex& index, const char* name, const std::string& folder) {
  for (const ShardInfo& shard : index.shards()) {
    std::error_code absent;
    if (std::filesystem::equivalent(parent_folder(shard.path), folder, absent))
      fail_agreed(ExitCode::usage,
                  fmt::format("{} {} is the folder of the shards", name, in_quotes(folder)),
                  fmt::format("another {}", name));
  }
}

void refuse_output_files(Communicator& world, const std::vector<std::string>& paths) {
  agree(world, [&] {
    if (world.rank() != 0) return;
    for (size_t i = 0; i < paths.size(); ++i) {
      if (paths[i].empty()) continue;
      refuse_output_file(paths[i]);
      if (std::find(paths.begin(), paths.begin() + i, paths[i]) != paths.begin() + i)
        fail(ExitCode::usage, fmt::format("{} is to be written twice", in_quotes(paths[i])),
             "a file each");
    }
  });
}

void refuse_output_folder(Communicator& world, const std::string& path) {
  agree(world, [&] {
    if (world.rank() == 0) refuse_output_folder(path);
  });
}

void refuse_outputs_among(const ShardIndex& index, const std::vector<std::string>& paths) {
  for (const std::string& path : paths)
    for (const ShardInfo& shard : index.shards()) {
      std::error_code absent;
      if (std::filesystem::equivalent(shard.path, path, absent))
        fail_agreed(ExitCode::usage,
                    fmt::format("cannot write {}: it is a shard of the data", in_quotes(path)),
                    "another name");
    }
}

std::vector<float> gather_parts(Communicator& world, const std::vector<float>& mine,
                                const char* name) {
  const auto ranks = static_cast<size_t>(world.size());
  const auto own = static_cast<int64_t>(mine.size());
  std::vector<int64_t> sizes(ranks);
  world.all_gather(view_of(&own, 1), view_of(sizes.data(), world.size()), name);
  const int64_t widest = *std::max_element(sizes.begin(), sizes.end());
  std::vector<float> padded(mine);
  padded.resize(static_cast<size_t>(widest));
  std::vector<float> all(ranks * static_cast<size_t>(widest));
  const std::vector<float>& send = padded;
  world.all_gather(view_of(send.data(), widest), view_of(all.data(), widest * world.size()), name);
  std::vector<float> joined;
  for (size_t r = 0; r < ranks; ++r) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(r) * widest;
    joined.insert(joined.end(), begin, begin + sizes[r]);
  }
  return joined;
}

std::vector<RankRecord> gather_ranks(Launch& launch, int threads) {
  const LaunchFacts& facts = launch.facts();
  WireRecord mine{facts.rank, facts.node, facts.local_rank, facts.cpus, threads, ""};
  std::strncpy(mine.host, facts.host.c_str(), sizeof(mine.host) - 1);
  std::vector<WireRecord> all(static_cast<size_t>(facts.ranks));
  const auto bytes = static_cast<int64_t>(sizeof(WireRecord));
  launch.world().all_gather({&mine, bytes, DType::u8, Device::cpu},
                            {all.data(), bytes * facts.ranks, DType::u8, Device::cpu}, "rank map");
  std::vector<RankRecord> records;
  for (const WireRecord& w : all)
    records.push_back({w.rank, w.node, w.local_rank, w.cpus, w.threads, w.host});
  return records;
}

std::string rank_table(const std::vector<RankRecord>& ranks) {
  std::string text = fmt::format("{:>6} {:>6} {:>6} {:>6} {:>8}  host", "rank", "node", "local",
                                 "cpus", "threads");
  for (const RankRecord& r : ranks)
    text += fmt::format("\n{:>6} {:>6} {:>6} {:>6} {:>8}  {}", r.rank, r.node, r.local_rank, r.cpus,
                        r.threads, r.host);
  return text;
}

}  // namespace megadict
