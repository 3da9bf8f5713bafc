#include "app/staging.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "app/plan.h"
#include "app/together.h"
#include "base/clock.h"
#include "base/log.h"
#include "comm/agree.h"
#include "data/stage.h"

namespace megadict {

namespace {

// Between two calls of the others: far below any limit of the watchdog that lets a run work.
constexpr double kSlice_s = 0.5;

// The most that is missing on a node.
int64_t most_missing(Communicator& world, const std::optional<ShardStage>& stage) {
  int64_t bytes = stage ? stage->bytes_missing() : 0;
  world.all_reduce(view_of(&bytes, 1), ReduceOp::max, "bytes to stage");
  return bytes;
}

// Of this launch's ranks, which may be a part of a job's.
bool first_of_node(Launch& launch) {
  const int32_t mine = launch.facts().node;
  std::vector<int32_t> all(static_cast<size_t>(launch.facts().ranks));
  launch.world().all_gather(view_of(&mine, 1), view_of(all.data(), launch.facts().ranks), "nodes");
  return std::find(all.begin(), all.end(), mine) - all.begin() == launch.facts().rank;
}

}  // namespace

void stage_shards(Launch& launch, const std::string& folder, const std::vector<int32_t>& shards,
                  ShardIndex& index) {
  refuse_folder_of_shards(index, "data.stage_dir", folder);
  std::optional<ShardStage> stage;
  const bool copies = first_of_node(launch);
  agree(launch.world(), [&] {
    if (copies) stage.emplace(index, shards, folder);
  });
  const double start = seconds_now();
  const int64_t bytes = most_missing(launch.world(), stage);
  if (bytes > 0)
    say(fmt::format("staging {} of {} shards in {}: up to {} on a node", shards.size(),
                    index.shards().size(), folder, bytes_text(bytes)));
  while (most_missing(launch.world(), stage) > 0)
    agree(launch.world(), [&] {
      if (stage) stage->copy(kSlice_s);
    });
  if (bytes > 0) say(fmt::format("staged in {:.1f} s", seconds_now() - start));
  index = staged_index(index, shards, folder);
}

}  // namespace megadict
