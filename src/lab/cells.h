// What the experiments build their cells from.
#pragma once

#include "lab/experiment.h"
#include "lab/methods.h"

namespace megadict {

// The problem of run `seed`, counted from 0: data seed = base + seed, so that spreads and bands
// cover the data.
struct LabData {
  SynthOptions options = {.n_latents = 16, .width = 8, .k = 3};
  int64_t samples = 2048;
};
LabData data_of(const LabScale& scale, uint64_t base_seed);
LabProblem problem_of(const LabData& data, int64_t seed);
nlohmann::ordered_json data_json(const LabData& data, int64_t seed);
// The model's draws, as the authors seed them: data seed + 42.
uint64_t model_seed(const LabData& data, int64_t seed);

// scale's own numbers in place of the experiment's.
MethodSettings apply(const LabScale& scale, MethodSettings settings);
int64_t seeds_of(const LabScale& scale, int64_t otherwise = 3);

// Cells of one method: `count` data seeds, scored by scores_json().
void add_cells(std::vector<LabCell>& cells, const std::string& group, const LabData& data,
               const MethodSettings& settings, int64_t count, double cost_s);

}  // namespace megadict
