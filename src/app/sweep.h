// The points of a sweep on groups of ranks: each group takes the next point that nobody has taken
// and trains it as `megadict train` would on a mesh of that group, with the same bits.
#pragma once

#include <string>
#include <vector>

#include "app/commands.h"
#include "app/sweep_grid.h"
#include "comm/launch.h"

namespace megadict {

struct SweepConfig {
  std::string dir;
  int groups = 1;             // of equal size
  int64_t only = -1;          // this point alone; -1 = all
  bool retry = false;         // failed points are tried again
  std::string sort;           // of the table
  bool share_stream = false;  // one group reads for all (sweep_stream.h)
};

// Runs what is not done yet. A point that fails (errors 1 to 4) is recorded and the next one
// begins; a lost rank or a time-out ends the job. Prints and writes the table. Returns 0, 1 where a
// point has failed, or 75 and 143 after a signal, when all groups have saved. Collective over the
// launch.
ExitCode run_sweep(Launch& launch, const SweepConfig& config, const std::vector<SweepPoint>& points,
                   const Args& args);

// As many groups as points can use: the largest number that cuts `ranks` into equal meshes of
// every point's `mesh.data` x `mesh.feature` (0 = any; then not above the number of points).
int groups_for(int ranks, const std::vector<SweepPoint>& points);

}  // namespace megadict
