// Runs an experiment on the ranks of a launch. Every cell is one rank's and is kept as soon as it
// is done, so that a run goes on where it was interrupted; its numbers follow from its settings
// alone, so that they do not depend on the number of ranks.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/error.h"
#include "comm/communicator.h"
#include "lab/experiment.h"

namespace megadict {

struct LabRun {
  std::string
      out;  // folder of all experiments; this one's is OUT/NAME, OUT/NAME_quick, OUT/NAME_full
  LabScale scale;
  bool quiet = false;  // no line a cell
};

// OUT/NAME/cells/CELL.json (and OUT/NAME/files/CELL where a cell leaves more), then
// OUT/NAME/result.json and table.txt; prints the table. `machine` goes into the result. Exit 2
// where a cell of other settings is in the folder, 4 where a cell diverges. Returns 75 or 143 after
// a signal, once the cells in hand are done. Collective.
ExitCode run_experiment(Communicator& world, const LabExperiment& experiment, const LabRun& run,
                        const nlohmann::ordered_json& machine, VerdictCount& count);

// Which rank takes which cell: the dearest first, each to the rank with the least to do.
std::vector<int> deal_cells(const std::vector<LabCell>& cells, int ranks);

// "about 12 min on one core", of the cells.
std::string cost_text(double cost_s);

}  // namespace megadict
