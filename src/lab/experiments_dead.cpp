// K1: how many latents die as the dictionary grows, at the same rows.
#include <fmt/format.h>

#include <cmath>

#include "data/shard_index.h"
#include "lab/cells.h"
#include "lab/experiments.h"
#include "lab/row_training.h"
#include "train/schedule.h"

namespace megadict {

namespace {

constexpr uint64_t kSeed = 20250103;
constexpr int64_t kLatents[] = {512, 2048, 8192, 32768};
constexpr int64_t kBatch = 2048;
constexpr double kLambda = 5;  // beside |x - x_hat|^2 of rows with a mean |x|^2 of their width

std::string group_of(int64_t latents) {
  return fmt::format("n{}", latents);
}

// The trainer's rows have a mean |x|^2 of 1: the same loss over the width, sum |z| |d| shrinking by
// its root alone.
nlohmann::ordered_json train_cell(RowTraining training, double lambda) {
  const auto width = static_cast<double>(ShardIndex::open(training.path).width());
  training.model.l1_coefficient = lambda / std::sqrt(width);
  return train_on_rows(training);
}

std::vector<LabCell> dead_cells(const LabScale& scale) {
  std::vector<LabCell> cells;
  for (const int64_t latents : kLatents)
    for (int64_t seed = 0; seed < seeds_of(scale, 1); ++seed) {
      if (scale.quick && latents == 32768) continue;
      RowTraining training;
      training.path = scale.data_path;
      training.normalize = "unit_rms";
      training.model.activation = "relu";
      training.model.n_latents = latents;
      training.batch = kBatch;
      training.steps = scale.quick ? 150 : 1000;
      if (scale.steps > 0) training.steps = scale.steps;
      training.optim.lr = scale.rate > 0 ? scale.rate : auto_rate(latents, kBatch, training.steps);
      training.seed = kSeed + static_cast<uint64_t>(seed);
      const double lambda = scale.lambda > 0 ? scale.lambda : kLambda;
      nlohmann::ordered_json settings = settings_json(training);
      settings["lambda"] = lambda;
      const double products = static_cast<double>(latents * kBatch * training.steps);
      cells.push_back({.group = group_of(latents),
                       .seed = seed,
                       .cost_s = 1 + 1.5e-8 * products,
                       .settings = settings,
                       .run = [=] { return train_cell(training, lambda); }});
    }
  return cells;
}

std::vector<LabRow> dead_table(const LabResults& r) {
  std::vector<LabRow> rows;
  std::optional<double> before;
  for (const int64_t latents : kLatents) {
    const std::string group = group_of(latents);
    if (!r.has(group)) continue;
    const auto add = [&](const char* what, const char* key, const char* reported,
                         std::optional<Band> band = {}) {
      rows.push_back(r.row(fmt::format("n {}: {}", latents, what), group, key, reported, band));
    };
    add("active latents of a row", "l0", "< 300 at 1M to 34M", Band{0, 300});
    add("variance not explained", "fvu", "<= .35 at 1M to 34M", Band{0, .35});
    add("dead share", "dead", ".02, .35, .65 at 1M, 4M, 34M");
    const double dead = r.mean(group, "dead");
    if (before)
      rows.push_back(
          claim_row(fmt::format("n {}: dead share less that of the size before", latents),
                    dead - *before, "> 0", {.low = 0}));
    before = dead;
  }
  return rows;
}

}  // namespace

LabExperiment dead_experiment() {
  return {.name = "dead",
          .items = "K1, D6",
          .summary = "dead latents over the dictionary's size, at the same rows",
          .cells = dead_cells,
          .table = dead_table,
          .rows = LabRows::always};
}

}  // namespace megadict
