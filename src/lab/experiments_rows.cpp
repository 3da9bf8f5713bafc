// On activations of a model instead of the synthetic problem: L1, deep encoders and decoders beside
// a linear one; and the frontier of every architecture that the trainer has.
#include <fmt/format.h>

#include "lab/cells.h"
#include "lab/curves.h"
#include "lab/experiments.h"
#include "lab/row_training.h"

namespace megadict {

namespace {

constexpr uint64_t kSeed = 20250101;

void add_row_cells(std::vector<LabCell>& cells, const std::string& group, const LabScale& scale,
                   RowTraining training, double cost_s) {
  for (int64_t seed = 0; seed < seeds_of(scale, 1); ++seed) {
    training.path = scale.data_path;
    training.seed = kSeed + static_cast<uint64_t>(seed);
    cells.push_back({.group = group,
                     .seed = seed,
                     .cost_s = cost_s,
                     .settings = settings_json(training),
                     .run = [=] { return train_on_rows(training); }});
  }
}

// ---- L1 ----------------------------------------------------------------------------------------

struct Depth {
  const char *name, *encoder, *decoder;
  bool norm;
};
constexpr Depth kDepths[] = {{"shallow", "linear", "linear", false},
                             {"deep", "deep", "linear", false},
                             {"deep_deep", "deep", "deep", false},
                             {"deep_deep_norm", "deep", "deep", true}};
constexpr double kWeights[] = {.125, .25, .5, 1, 2, 4};  // of L1
constexpr double kLevels[] = {5, 10, 20, 40};            // L0 to compare at

std::string depth_group(const Depth& depth, double l1) {
  return fmt::format("{}_l1_{:g}", depth.name, l1);
}

std::vector<LabCell> depth_cells(const LabScale& scale) {
  std::vector<LabCell> cells;
  for (const Depth& depth : kDepths)
    for (const double l1 : kWeights) {
      if (scale.quick && (l1 == .125 || depth.norm)) continue;
      RowTraining training;
      training.model.encoder = depth.encoder;
      training.model.decoder = depth.decoder;
      training.model.decoder_norm = depth.norm;
      training.model.activation = "relu";
      training.model.n_latents = scale.latents > 0 ? scale.latents : 256;
      training.model.l1_coefficient = l1;
      training.optim.lr = scale.rate > 0 ? scale.rate : 4e-3;
      training.optim.hidden_decay = 5e-4;
      training.batch = scale.quick ? 1024 : 4096;
      training.steps = scale.quick ? 300 : 5000;
      if (scale.steps > 0) training.steps = scale.steps;
      const double rows = static_cast<double>(training.batch * training.steps);
      add_row_cells(cells, depth_group(depth, l1), scale, training, rows * 2e-5);
    }
  return cells;
}

std::vector<LabRow> depth_table(const LabResults& r) {
  const auto curve = [&](const Depth& depth) {
    std::vector<std::string> groups;
    for (const double l1 : kWeights) groups.push_back(depth_group(depth, l1));
    return log_curve_of(r, groups, "l0", "mse");
  };
  std::vector<LabRow> rows;
  for (const Depth& depth : kDepths)
    for (const double l1 : kWeights) {
      const std::string group = depth_group(depth, l1);
      if (!r.has(group)) continue;
      rows.push_back(r.row(group + ": L0", group, "l0", ""));
      rows.push_back(r.row(group + ": MSE", group, "mse", ""));
      rows.push_back(r.row(group + ": dead", group, "dead", ""));
    }
  for (const double l0 : kLevels) {
    for (const Depth& depth : kDepths)
      rows.push_back(derived_row(fmt::format("MSE at L0 = {:g}, {}", l0, depth.name),
                                 exp_at(curve(depth), l0), ""));
    const auto shallow = exp_at(curve(kDepths[0]), l0), deep = exp_at(curve(kDepths[1]), l0);
    rows.push_back(claim_row(fmt::format("claim at L0 = {:g}: deep / shallow", l0),
                             shallow && deep ? std::optional(*deep / *shallow) : std::nullopt,
                             "below 1", {0, 1}));
  }
  return rows;
}

// ---- every architecture of the trainer ---------------------------------------------------------

struct Architecture {
  const char *name, *encoder, *activation;
};
constexpr Architecture kArchitectures[] = {{"relu", "linear", "relu"},
                                           {"topk", "linear", "topk"},
                                           {"batchtopk", "linear", "batchtopk"},
                                           {"jumprelu", "linear", "jumprelu"},
                                           {"gated", "linear", "gated"},
                                           {"mlp", "mlp", "relu"},
                                           {"deep", "deep", "relu"},
                                           {"mlp_topk", "mlp", "topk"}};

// What sparsity is asked of: k, an L0, or a weight of L1.
std::vector<double> knobs_of(const Architecture& one) {
  const std::string activation = one.activation;
  if (activation == "relu" || activation == "gated") return {2, 4, 8, 16, 32};
  return {4, 8, 16, 32, 64};
}

std::string architecture_group(const Architecture& one, double knob) {
  return fmt::format("{}_{:g}", one.name, knob);
}

}  // namespace

std::vector<LabCell> row_frontier_cells(const LabScale& scale) {
  std::vector<LabCell> cells;
  for (const Architecture& one : kArchitectures)
    for (const double knob : knobs_of(one)) {
      RowTraining training;
      ModelConfig& model = training.model;
      model.encoder = one.encoder;
      if (model.encoder == "mlp") model.hidden = "256";
      model.activation = one.activation;
      model.n_latents = scale.latents > 0 ? scale.latents : 1024;
      model.k = static_cast<int64_t>(knob);
      if (model.k > model.n_latents) continue;
      model.l0_target = model.l1_coefficient = knob;
      training.optim.lr = scale.rate > 0 ? scale.rate : 2e-3;
      training.optim.hidden_decay = model.encoder == "deep" ? 5e-4 : 0;
      training.auxk_alpha =
          model.activation == "topk" || model.activation == "batchtopk" ? 1.0 / 32 : 0;
      if (model.activation == "jumprelu") training.normalize = "unit_rms";
      if (model.activation == "jumprelu" || model.activation == "gated") training.optim.beta1 = 0;
      training.batch = 2048;
      training.steps = scale.quick ? 200 : 2000;
      if (scale.steps > 0) training.steps = scale.steps;
      const double rows = static_cast<double>(training.batch * training.steps);
      add_row_cells(cells, architecture_group(one, knob), scale, training, rows * 5e-5);
    }
  return cells;
}

std::vector<LabRow> row_frontier_table(const LabResults& r) {
  std::vector<LabRow> rows;
  for (const Architecture& one : kArchitectures)
    for (const double knob : knobs_of(one)) {
      const std::string group = architecture_group(one, knob);
      if (!r.has(group)) continue;
      for (const char* key : {"l0", "fvu", "dead"})
        rows.push_back(r.row(fmt::format("{}: {}", group, key), group, key, ""));
    }
  return rows;
}

LabExperiment depth_experiment() {
  return {.name = "depth",
          .items = "L1, B4, B5",
          .summary = "deep encoders and decoders on activations (Fig 1 of seed 000)",
          .cells = depth_cells,
          .table = depth_table,
          .rows = LabRows::always};
}

}  // namespace megadict
