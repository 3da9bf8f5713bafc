// K6, L2h: how loss, size and training length go together at the best use of a budget.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "lab/cells.h"
#include "lab/experiments.h"
#include "lab/row_training.h"
#include "lab/scaling_fit.h"

namespace megadict {

namespace {

constexpr uint64_t kSeed = 20250102;
constexpr int64_t kLatents[] = {128, 256, 512, 1024};
constexpr int64_t kBatch = 2048;
constexpr int64_t kDraws = 200;

std::vector<int64_t> steps_of(const LabScale& scale) {
  if (scale.steps > 0) return {scale.steps, 2 * scale.steps, 4 * scale.steps, 8 * scale.steps};
  if (scale.quick) return {30, 60, 120, 240};
  return {250, 500, 1000, 2000};
}

std::vector<LabCell> scaling_cells(const LabScale& scale) {
  std::vector<LabCell> cells;
  for (const int64_t latents : kLatents)
    for (const int64_t steps : steps_of(scale))
      for (int64_t seed = 0; seed < seeds_of(scale, 1); ++seed) {
        RowTraining training;
        training.path = scale.data_path;
        training.model.n_latents = latents;
        training.model.k = scale.k > 0 ? scale.k : 16;
        training.optim.lr = scale.rate > 0 ? scale.rate : 2e-3;
        training.auxk_alpha = 1.0 / 32;
        training.batch = kBatch;
        training.steps = steps;
        training.seed = kSeed + static_cast<uint64_t>(seed);
        nlohmann::ordered_json settings = settings_json(training);
        cells.push_back({.group = fmt::format("n{}_steps{}", latents, steps),
                         .seed = seed,
                         .cost_s = 1e-5 * static_cast<double>(kBatch * steps),
                         .settings = settings,
                         .run = [=] {
                           nlohmann::ordered_json numbers = train_on_rows(training);
                           numbers["latents"] = latents;
                           numbers["rows"] = kBatch * steps;
                           return numbers;
                         }});
      }
  return cells;
}

struct Run {
  double latents, rows, loss;
  double compute() const { return latents * rows; }
};

// Those that no cheaper run betters, by compute.
std::vector<Run> frontier_of(std::vector<Run> runs) {
  std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) {
    return a.compute() != b.compute() ? a.compute() < b.compute() : a.loss < b.loss;
  });
  std::vector<Run> best;
  for (const Run& run : runs)
    if (best.empty() || (run.loss < best.back().loss && run.compute() > best.back().compute()))
      best.push_back(run);
  return best;
}

std::vector<LabRow> scaling_table(const LabResults& r) {
  std::vector<Run> runs;
  std::vector<LabRow> rows;
  for (const LabResult& result : r.all()) {
    const auto& n = result.numbers;
    runs.push_back({n["latents"].get<double>(), n["rows"].get<double>(), n["fvu"].get<double>()});
    if (result.seed == 0) rows.push_back(r.row(result.group + ": FVU", result.group, "fvu", ""));
  }
  const std::vector<Run> best = frontier_of(runs);
  rows.push_back(
      derived_row("runs that no cheaper one betters", static_cast<double>(best.size()), ""));
  if (best.size() < 3) return rows;
  const auto points = [&](double (*y)(const Run&)) {
    std::vector<Point> out;
    for (const Run& run : best) out.push_back({run.compute(), y(run)});
    return out;
  };
  const std::vector<Point> loss = points([](const Run& run) { return run.loss; });
  const PowerLaw law = fit_power_law(loss);
  const FloorLaw floor = fit_floor_law(loss);
  const Interval interval = floor_interval(loss, kDraws, kSeed);
  const auto exponent = [&](double (*y)(const Run&)) { return fit_power_law(points(y)).exponent; };
  const auto add = [&](const char* what, double value) {
    rows.push_back(derived_row(what, value, ""));
  };
  add("loss ~ C^b (C = latents x rows): b", law.exponent);
  add("best latents ~ C^b: b", exponent([](const Run& run) { return run.latents; }));
  add("best rows ~ C^b: b", exponent([](const Run& run) { return run.rows; }));
  add("error of log loss without a floor", law.error);
  add("loss = a + b C^-c: a", floor.floor);
  add("  its middle 90 % over draws of runs, from", interval.low);
  add("  to", interval.high);
  add("  c", floor.exponent);
  add("  error of log loss", floor.error);
  return rows;
}

}  // namespace

LabExperiment scaling_experiment() {
  return {.name = "scaling",
          .items = "K6, L2h",
          .summary = "scaling laws over latents and rows of activations, with and without a floor",
          .cells = scaling_cells,
          .table = scaling_table,
          .rows = LabRows::always};
}

}  // namespace megadict
