#include "lab/cells.h"

#include <fmt/format.h>

#include "base/error.h"

namespace megadict {

LabData data_of(const LabScale& scale, uint64_t base_seed) {
  LabData data;
  data.options.seed = base_seed;
  data.options.zipf = scale.zipf;
  if (scale.latents > 0) data.options.n_latents = scale.latents;
  if (scale.width > 0) data.options.width = scale.width;
  if (scale.k > 0) data.options.k = scale.k;
  if (scale.samples > 0) data.samples = scale.samples;
  if (data.options.k > data.options.n_latents)
    fail_agreed(ExitCode::usage,
                fmt::format("k = {} active of {} latents", data.options.k, data.options.n_latents),
                "--k up to --latents");
  return data;
}

LabProblem problem_of(const LabData& data, int64_t seed) {
  SynthOptions options = data.options;
  options.seed += static_cast<uint64_t>(seed);
  return make_problem(options, data.samples);
}

nlohmann::ordered_json data_json(const LabData& data, int64_t seed) {
  const SynthOptions& o = data.options;
  return {{"latents", o.n_latents},
          {"width", o.width},
          {"k", o.k},
          {"samples", data.samples},
          {"zipf", o.zipf},
          {"k_dist", o.k_dist},
          {"corr", o.correlation},
          {"seed", o.seed + static_cast<uint64_t>(seed)}};
}

uint64_t model_seed(const LabData& data, int64_t seed) {
  constexpr uint64_t kOffset = 42;
  return data.options.seed + static_cast<uint64_t>(seed) + kOffset;
}

MethodSettings apply(const LabScale& scale, MethodSettings settings) {
  if (scale.latents > 0) settings.latents = scale.latents;
  if (scale.k > 0) settings.k = scale.k;
  if (scale.steps > 0) settings.steps = scale.steps;
  if (scale.rate > 0) settings.rate = scale.rate;
  if (scale.lambda > 0) settings.lambda = scale.lambda;
  return settings;
}

int64_t seeds_of(const LabScale& scale, int64_t otherwise) {
  return scale.seeds > 0 ? scale.seeds : otherwise;
}

void add_cells(std::vector<LabCell>& cells, const std::string& group, const LabData& data,
               const MethodSettings& settings, int64_t count, double cost_s) {
  for (int64_t seed = 0; seed < count; ++seed) {
    MethodSettings own = settings;
    own.seed = model_seed(data, seed);
    cells.push_back({.group = group,
                     .seed = seed,
                     .cost_s = cost_s,
                     .settings = {{"data", data_json(data, seed)}, {"model", settings_json(own)}},
                     .run = [=] {
                       const LabProblem problem = problem_of(data, seed);
                       return scores_json(problem, own, learn(problem, own));
                     }});
  }
}

}  // namespace megadict
