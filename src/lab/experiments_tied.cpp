// L2c: the autoencoder's decoder tied to its encoder, or its own with unit or free columns.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "lab/cells.h"
#include "lab/curves.h"
#include "lab/experiments.h"
#include "lab/network_cells.h"

namespace megadict {

namespace {

constexpr double kLambdaW = 20;

// A free decoder grows and its codes shrink, so that one lambda_S does not make them alike: each
// kind has its own, over about the same range of active latents.
struct Arm {
  DecoderKind kind;
  std::vector<double> lambdas, quick_lambdas;
};
const std::vector<Arm>& arms() {
  static const std::vector<Arm> all = {
      {DecoderKind::tied, {.1, .2, .3, .6, 1}, {.1, .3, 1}},
      {DecoderKind::unit_columns, {.1, .3, .6, 1, 2}, {.1, .6, 1.5}},
      {DecoderKind::free, {.05, .1, .2, .4, .8}, {.05, .2, 1}}};
  return all;
}

std::string group_of(DecoderKind kind, double lambda) {
  return fmt::format("{}_s{}", name_of(kind), lambda);
}

nlohmann::ordered_json run_arm(NetworkWorkshop& workshop, const NetworkSettings& s,
                               DecoderKind kind, double lambda) {
  const BaseNetwork& base = workshop.base(s);
  const std::vector<LayerSae>& saes = workshop.saes(s, kind, lambda);
  nlohmann::ordered_json json;
  double active = 0;
  for (size_t l = 0; l < saes.size(); ++l) {
    json[fmt::format("mse{}", l + 1)] = saes[l].mse;
    json[fmt::format("active{}", l + 1)] = saes[l].active;
    json[fmt::format("l1_{}", l + 1)] = saes[l].l1;
    json[fmt::format("above{}", l + 1)] = saes[l].above;
    active += saes[l].active / static_cast<double>(saes.size());
  }
  json["active"] = active;
  for (const bool closed : {false, true}) {
    const std::vector<LayerConnector> connectors = train_connectors(base, saes, closed, kLambdaW);
    const Accuracies found = accuracies(base, saes, connectors_of(connectors));
    const char* start = closed ? "closed" : "random";
    json["base"] = found.base;
    json["reconstructed"] = found.reconstructed;
    json[fmt::format("simulated_{}", start)] = found.simulated;
    json[fmt::format("above12_{}", start)] = connectors[0].above_by_epoch.back();
    json[fmt::format("above23_{}", start)] = connectors[1].above_by_epoch.back();
    json[fmt::format("mse12_{}", start)] = connectors[0].mse_by_epoch.back();
    json[fmt::format("mse23_{}", start)] = connectors[1].mse_by_epoch.back();
  }
  return json;
}

std::vector<LabCell> tied_cells(const LabScale& scale) {
  const auto workshop = std::make_shared<NetworkWorkshop>(scale.mnist);
  std::vector<LabCell> cells;
  for (int64_t seed = 0; seed < seeds_of(scale, scale.quick ? 1 : 3); ++seed)
    for (const Arm& arm : arms())
      for (const double lambda : scale.quick ? arm.quick_lambdas : arm.lambdas) {
        const NetworkSettings s = network_settings(scale, seed);
        const NetworkCost cost = cost_of(s);
        const DecoderKind kind = arm.kind;
        cells.push_back({.group = group_of(kind, lambda),
                         .seed = seed,
                         .cost_s = cost.base_s / 10 + cost.saes_s + 2 * cost.connectors_s,
                         .settings = {{"network", settings_json(s)},
                                      {"decoder", name_of(kind)},
                                      {"lambda_s", lambda},
                                      {"lambda_w", kLambdaW}},
                         .run = [=] { return run_arm(*workshop, s, kind, lambda); }});
      }
  return cells;
}

std::vector<std::string> groups_of(const LabResults& r, const Arm& arm) {
  std::vector<std::string> groups;
  for (const std::vector<double>& lambdas : {arm.lambdas, arm.quick_lambdas})
    for (const double lambda : lambdas) {
      const std::string group = group_of(arm.kind, lambda);
      if (r.has(group) && std::count(groups.begin(), groups.end(), group) == 0)
        groups.push_back(group);
    }
  return groups;
}

// numbers[key] of a kind at `active` latents (of numbers[axis]), over its lambdas. The error's
// logarithm is what is interpolated.
std::optional<double> at_active(const LabResults& r, const Arm& arm, const std::string& axis,
                                const std::string& key, double active) {
  const std::vector<std::string> groups = groups_of(r, arm);
  return key.starts_with("mse") ? exp_at(log_curve_of(r, groups, axis, key), active)
                                : value_at(curve_of(r, groups, axis, key), active);
}

// Two numbers of active latents that every kind spans, at a quarter and three quarters of the range
// they have in common; none where they have none.
std::vector<double> compared_at(const LabResults& r, const std::string& axis) {
  double low = 0, high = std::numeric_limits<double>::infinity();
  for (const Arm& arm : arms()) {
    double least = std::numeric_limits<double>::infinity(), most = 0;
    for (const std::string& group : groups_of(r, arm)) {
      least = std::min(least, r.mean(group, axis));
      most = std::max(most, r.mean(group, axis));
    }
    low = std::max(low, least);
    high = std::min(high, most);
  }
  if (!(low < high)) return {};
  return {low + .25 * (high - low), low + .75 * (high - low)};
}

struct Claim {
  std::string what, axis, key;
  bool less_is_better;
};

// The row of each kind, and whether tied is the best.
void add_claim_at(std::vector<LabRow>& rows, const LabResults& r, const Claim& claim,
                  double active) {
  std::optional<double> tied, best_untied;
  for (const Arm& arm : arms()) {
    const std::optional<double> value = at_active(r, arm, claim.axis, claim.key, active);
    rows.push_back(derived_row(
        fmt::format("{} at {:.1f} active: {}", claim.what, active, name_of(arm.kind)), value, ""));
    if (!value) continue;
    const bool better = !best_untied || (*value < *best_untied) == claim.less_is_better;
    if (arm.kind == DecoderKind::tied)
      tied = value;
    else if (better)
      best_untied = value;
  }
  if (tied && best_untied)
    rows.push_back(claim_row("  claim: tied is the best (1 = yes)",
                             (*tied < *best_untied) == claim.less_is_better ? 1 : 0, "1", {1, 1}));
}

void add_claim(std::vector<LabRow>& rows, const LabResults& r, const Claim& claim) {
  const std::vector<double> points = compared_at(r, claim.axis);
  for (const double active : points) add_claim_at(rows, r, claim, active);
  if (points.empty())
    rows.push_back(derived_row(claim.what + ": no number of active latents in common", {}, ""));
}

std::vector<LabRow> tied_table(const LabResults& r) {
  std::vector<LabRow> rows;
  for (int layer = 1; layer <= 3; ++layer)
    add_claim(rows, r,
              {fmt::format("MSE, layer {}", layer), fmt::format("active{}", layer),
               fmt::format("mse{}", layer), true});
  for (const char* start : {"random", "closed"}) {
    add_claim(rows, r,
              {fmt::format("simulated accuracy, {}", start), "active",
               fmt::format("simulated_{}", start), false});
    add_claim(rows, r,
              {fmt::format("weights > .1, 1 to 2, {}", start), "active",
               fmt::format("above12_{}", start), true});
  }
  return rows;
}

}  // namespace

LabExperiment tied_experiment() {
  return {
      "tied",     "L2c",      "MNIST: tied decoders against untied ones, at equal active latents",
      tied_cells, tied_table, check_mnist};
}

}  // namespace megadict
