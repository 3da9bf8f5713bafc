#include "app/rank_map.h"

#include <fmt/format.h>

#include <cstring>

namespace megadict {

namespace {

// One line, of fixed size so that one all-gather moves it.
struct RankRecord {
  int32_t rank, node, local_rank, cpus, threads;
  char host[108];
};

}  // namespace

std::string rank_map_text(Launch& launch) {
  const LaunchFacts& facts = launch.facts();
  RankRecord mine{facts.rank, facts.node, facts.local_rank, facts.cpus, resolve_threads(0, facts),
                  ""};
  std::strncpy(mine.host, facts.host.c_str(), sizeof(mine.host) - 1);
  std::vector<RankRecord> all(static_cast<size_t>(facts.ranks));
  const auto bytes = static_cast<int64_t>(sizeof(RankRecord));
  launch.world().all_gather({&mine, bytes, DType::u8, Device::cpu},
                            {all.data(), bytes * facts.ranks, DType::u8, Device::cpu}, "rank map");
  std::string text = fmt::format("{:>6} {:>6} {:>6} {:>6} {:>8}  host", "rank", "node", "local",
                                 "cpus", "threads");
  for (const RankRecord& record : all)
    text += fmt::format("\n{:>6} {:>6} {:>6} {:>6} {:>8}  {}", record.rank, record.node,
                        record.local_rank, record.cpus, record.threads, record.host);
  return text;
}

}  // namespace megadict
