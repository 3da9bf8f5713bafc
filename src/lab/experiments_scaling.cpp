// K6, L2h: how loss, size and training length go together at the best use of a budget.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "lab/cells.h"
#include "lab/experiments.h"
#include "lab/row_training.h"
#include "lab/scaling_fit.h"

namespace megadict {

namespace {

constexpr uint64_t kSeed = 20250102;
constexpr int64_t kLatents[] = {64, 128, 256, 512, 1024, 2048};
constexpr int64_t kUnit = 256;  // a budget is what so many latents train on in its steps
constexpr int64_t kBatch = 2048;
constexpr int64_t kDraws = 200;

// Steps of kUnit latents; others train for longer or shorter, at the same latents x rows.
std::vector<int64_t> budgets_of(const LabScale& scale) {
  if (scale.steps > 0) return {scale.steps, 2 * scale.steps, 4 * scale.steps, 8 * scale.steps};
  if (scale.quick) return {40, 80, 160, 320};
  return {256, 512, 1024, 2048, 4096};
}

std::string group_of(int64_t budget, int64_t latents) {
  return fmt::format("budget{}_n{}", budget, latents);
}

std::vector<LabCell> scaling_cells(const LabScale& scale) {
  std::vector<LabCell> cells;
  for (const int64_t budget : budgets_of(scale))
    for (const int64_t latents : kLatents)
      for (int64_t seed = 0; seed < seeds_of(scale, 1); ++seed) {
        if (scale.quick && latents == 2048) continue;
        RowTraining training;
        training.path = scale.data_path;
        training.model.n_latents = latents;
        training.model.k = scale.k > 0 ? scale.k : 16;
        training.optim.lr = scale.rate > 0 ? scale.rate : 2e-3;
        training.auxk_alpha = 1.0 / 32;
        training.batch = kBatch;
        training.steps = std::max<int64_t>(1, budget * kUnit / latents);
        training.seed = kSeed + static_cast<uint64_t>(seed);
        nlohmann::ordered_json settings = settings_json(training);
        settings["budget"] = budget;
        cells.push_back({.group = group_of(budget, latents),
                         .seed = seed,
                         .cost_s = 1e-5 * static_cast<double>(kBatch * training.steps),
                         .settings = settings,
                         .run = [=] {
                           nlohmann::ordered_json numbers = train_on_rows(training);
                           numbers["latents"] = latents;
                           numbers["rows"] = kBatch * training.steps;
                           return numbers;
                         }});
      }
  return cells;
}

// The budgets that were run, ascending.
std::vector<int64_t> budgets_in(const LabResults& r) {
  std::set<int64_t> budgets;
  for (const LabResult& result : r.all()) budgets.insert(result.settings["budget"].get<int64_t>());
  return {budgets.begin(), budgets.end()};
}

struct Best {
  double compute, latents, loss;
};

// The best size of a budget, between those that were run; and its rows of the table.
std::optional<Best> add_budget(std::vector<LabRow>& rows, const LabResults& r, int64_t budget) {
  std::vector<Point> points;
  for (const int64_t latents : kLatents) {
    const std::string group = group_of(budget, latents);
    if (!r.has(group)) continue;
    rows.push_back(r.row(group + ": FVU", group, "fvu", ""));
    points.push_back({static_cast<double>(latents), r.mean(group, "fvu")});
  }
  const auto compute = static_cast<double>(budget * kUnit * kBatch);
  const std::optional<Point> least = find_least(points);
  const auto add = [&](const char* what, std::optional<double> value) {
    rows.push_back(derived_row(fmt::format("budget {}: {}", budget, what), value, ""));
  };
  add("best latents (no number: at an end of what was run)",
      least ? std::optional(least->x) : std::nullopt);
  if (!least) return {};
  add("best FVU", least->y);
  return Best{compute, least->x, least->y};
}

// loss, latents and rows of the best runs as power laws of the compute, and the loss with a floor.
void add_laws(std::vector<LabRow>& rows, const std::vector<Best>& best) {
  const auto points = [&](double (*y)(const Best&)) {
    std::vector<Point> out;
    for (const Best& one : best) out.push_back({one.compute, y(one)});
    return out;
  };
  const auto exponent = [&](double (*y)(const Best&)) { return fit_power_law(points(y)).exponent; };
  const auto add = [&](const char* what, double value) {
    rows.push_back(derived_row(what, value, ""));
  };
  const std::vector<Point> loss = points([](const Best& one) { return one.loss; });
  const PowerLaw law = fit_power_law(loss);
  add("loss ~ C^b (C = latents x rows): b", law.exponent);
  add("best latents ~ C^b: b", exponent([](const Best& one) { return one.latents; }));
  add("best rows ~ C^b: b", exponent([](const Best& one) { return one.compute / one.latents; }));
  add("error of log loss without a floor", law.error);
  if (best.size() < 3) return;
  const FloorLaw floor = fit_floor_law(loss);
  const Interval interval = floor_interval(loss, kDraws, kSeed);
  add("loss = a + b C^-c: a", floor.floor);
  add("  its middle 90 % over draws of budgets, from", interval.low);
  add("  to", interval.high);
  add("  c", floor.exponent);
  add("  error of log loss", floor.error);
}

std::vector<LabRow> scaling_table(const LabResults& r) {
  std::vector<LabRow> rows;
  std::vector<Best> best;
  for (const int64_t budget : budgets_in(r))
    if (const std::optional<Best> one = add_budget(rows, r, budget)) best.push_back(*one);
  if (best.size() >= 2) add_laws(rows, best);
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
