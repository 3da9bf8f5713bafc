// One training run on the ranks of a launch: settings, data and mesh are put together here; the run
// itself is train/loop.h.
#pragma once

#include "app/commands.h"
#include "app/settings.h"
#include "base/error.h"
#include "comm/launch.h"
#include "data/batch_plan.h"
#include "data/shard_index.h"
#include "data/shared_stream.h"
#include "io/file.h"

namespace megadict {

// What runs of these settings train on, opened for whoever reads it for several of them. Errors
// 2 and 3 are agreed. Collective over the launch's world.
struct TrainingRows {
  ShardIndex index;
  BatchPlan plan;
};
TrainingRows open_training_rows(Launch& launch, Settings settings);

// From checked settings to final/. Returns done, requeue (75) or terminated (143). Errors 2, 3 and
// 4 are agreed (those of rows on the way with `agree_on_rows`, train/loop.h), so that the ranks may
// go on with something else. `args`: what the user typed, for env.json. `lock`: of run.dir, on
// rank 0; held when it returns, by who held it before or from here on. `rows`: a stream of theirs
// that others read or share. The watchdog runs. Collective over the launch's world.
ExitCode train_dictionary(Launch& launch, Settings settings, const Args& args, FolderLock& lock,
                          bool agree_on_rows = false, SharedStream* rows = nullptr);

}  // namespace megadict
