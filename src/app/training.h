// One training run on the ranks of a launch: settings, data and mesh are put together here; the run
// itself is train/loop.h.
#pragma once

#include "app/commands.h"
#include "app/settings.h"
#include "base/error.h"
#include "comm/launch.h"

namespace megadict {

// From checked settings to final/. Returns done, requeue (75) or terminated (143). Errors 2, 3 and
// 4 are agreed (those of rows on the way with `agree_on_rows`, train/loop.h), so that the ranks may
// go on with something else. `args`: what the user typed, for env.json. The watchdog runs.
// Collective over the launch's world.
ExitCode train_dictionary(Launch& launch, Settings settings, const Args& args,
                          bool agree_on_rows = false);

}  // namespace megadict
