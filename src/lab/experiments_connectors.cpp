// H1 to H4: classifier, autoencoders, connectors, and the network that is made of them.
#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "lab/cells.h"
#include "lab/experiments.h"
#include "lab/network_cells.h"
#include "lab/network_files.h"

namespace megadict {

namespace {

// lambda_S of the autoencoders, lambda_W of the connectors, and how the latter begin.
struct Point {
  double sae, weight;
  bool closed, quick;
};
constexpr Point kPoints[] = {{.1, 10, false, true}, {.1, 10, true, false}, {.3, 20, false, true},
                             {.3, 20, true, true},  {.5, 50, false, true}, {.5, 50, true, false}};

std::string group_of(const Point& p) {
  return fmt::format("s{}_w{}_{}", p.sae, p.weight, p.closed ? "closed" : "random");
}

std::string text_of(const Point& p) {
  return fmt::format("({}, {}) {}", p.sae, p.weight, p.closed ? "closed form" : "random");
}

nlohmann::ordered_json sae_numbers(const std::vector<LayerSae>& saes) {
  nlohmann::ordered_json json;
  for (size_t l = 0; l < saes.size(); ++l) {
    const LayerSae& layer = saes[l];
    const auto name = [&](const char* of) { return fmt::format("sae{}_{}", l + 1, of); };
    json[name("mse")] = layer.mse;
    json[name("l1")] = layer.l1;
    json[name("active")] = layer.active;
    json[name("above")] = layer.above;
    json[name("above_in_first")] = layer.above_in_first;
    json[name("train_loss_by_epoch")] = layer.train_loss_by_epoch;
    json[name("mse_by_epoch")] = layer.mse_by_epoch;
    json[name("l1_by_epoch")] = layer.l1_by_epoch;
  }
  return json;
}

nlohmann::ordered_json connector_numbers(const BaseNetwork& base,
                                         const std::vector<LayerConnector>& connectors) {
  nlohmann::ordered_json json;
  for (size_t l = 0; l < connectors.size(); ++l) {
    const LayerConnector& layer = connectors[l];
    const auto name = [&](const char* of) { return fmt::format("c{}{}_{}", l + 1, l + 2, of); };
    const Learnt<float>& neurons = base.net.layers()[l + 1].weight;
    const auto share = [](double count, const Learnt<float>& of) {
      return count / static_cast<double>(of.value.size());
    };
    const auto neurons_above = static_cast<double>(count_above(neurons, kLargeWeight));
    json[name("mse")] = layer.mse_by_epoch.back();
    json[name("l1")] = layer.l1_by_epoch.back();
    json[name("above")] = layer.above_by_epoch.back();
    json[name("above_share")] = share(layer.above_by_epoch.back(), layer.connector.map.weight);
    json[name("silent")] = layer.silent;
    json[name("silent_mse")] = layer.silent_mse;
    json[name("neurons_above")] = neurons_above;
    json[name("neurons_above_share")] = share(neurons_above, neurons);
    json[name("train_loss_by_epoch")] = layer.train_loss_by_epoch;
    json[name("mse_by_epoch")] = layer.mse_by_epoch;
    json[name("l1_by_epoch")] = layer.l1_by_epoch;
    json[name("above_by_epoch")] = layer.above_by_epoch;
  }
  return json;
}

nlohmann::ordered_json run_point(NetworkWorkshop& workshop, const NetworkSettings& s,
                                 const Point& p, const std::string& folder) {
  const BaseNetwork& base = workshop.base(s);
  const std::vector<LayerSae>& saes = workshop.saes(s, DecoderKind::tied, p.sae);
  const std::vector<LayerConnector> connectors = train_connectors(base, saes, p.closed, p.weight);
  const Accuracies found = accuracies(base, saes, connectors_of(connectors));
  nlohmann::ordered_json json = {{"base", found.base},
                                 {"reconstructed", found.reconstructed},
                                 {"simulated", found.simulated},
                                 {"lost", found.base - found.simulated}};
  json["base_best"] = *std::max_element(base.right_by_epoch.begin(), base.right_by_epoch.end());
  json["base_loss"] = base.loss_by_epoch.back();
  json["base_train_loss_by_epoch"] = base.train_loss_by_epoch;
  json["base_loss_by_epoch"] = base.loss_by_epoch;
  json["base_right_by_epoch"] = base.right_by_epoch;
  json.update(sae_numbers(saes));
  json.update(connector_numbers(base, connectors));
  write_network_files(folder, base, saes, connectors);
  return json;
}

std::vector<LabCell> connector_cells(const LabScale& scale) {
  const auto workshop = std::make_shared<NetworkWorkshop>(scale.mnist);
  std::vector<LabCell> cells;
  for (int64_t seed = 0; seed < seeds_of(scale); ++seed)
    for (const Point& p : kPoints) {
      if (scale.quick && !p.quick) continue;
      const NetworkSettings s = network_settings(scale, seed);
      const NetworkCost cost = cost_of(s);
      cells.push_back(
          {.group = group_of(p),
           .seed = seed,
           // The classifier and the autoencoders serve some of the cells that come together.
           .cost_s = cost.base_s / 5 + cost.saes_s / 2 + cost.connectors_s,
           .settings = {{"network", settings_json(s)},
                        {"lambda_s", p.sae},
                        {"lambda_w", p.weight},
                        {"closed", p.closed}},
           .run_into = [=](const std::string& folder) {
             return run_point(*workshop, s, p, folder);
           }});
    }
  return cells;
}

bool is_reduced(const LabResults& r) {
  return !r.all().empty() && r.all()[0].settings["network"]["train"].get<int64_t>() < 60000;
}

void add_point(std::vector<LabRow>& rows, const LabResults& r, const Point& p) {
  constexpr Point kLeast = kPoints[0];
  const std::string group = group_of(p), text = text_of(p);
  if (!r.has(group)) return;
  const bool first = p.sae == kLeast.sae && p.weight == kLeast.weight;
  const auto add = [&](const char* what, const char* key, const char* reported,
                       std::optional<Band> band = {}) {
    rows.push_back(r.row(fmt::format("{}: {}", text, what), group, key, reported, band));
  };
  const std::optional<Band> most_lost =
      is_reduced(r) ? std::optional(Band{.high = .06}) : std::nullopt;
  add("accuracy, layer 3 reconstructed", "reconstructed", "");
  add("accuracy, simulated", "simulated", ".94");
  add("accuracy lost by simulating", "lost", ".038", most_lost);
  add("weights > .1 of 65,536, 1 to 2", "c12_above", "458");
  add("  as a share", "c12_above_share", ".0070",
      first ? std::optional(Band{.high = .03}) : std::nullopt);
  add("weights > .1 of 65,536, 2 to 3", "c23_above", "");
  add("  as a share", "c23_above_share", "",
      first ? std::optional(Band{.high = .03}) : std::nullopt);
  add("connector MSE, 1 to 2", "c12_mse", ".03209");
  add("connector MSE, 2 to 3", "c23_mse", "");
  add("  of it by latents never foretold, 1 to 2", "c12_silent_mse", "");
  add("connector mean |w|, 1 to 2", "c12_l1", ".02114");
  if (p.closed && r.has(group_of({p.sae, p.weight, false, true}))) return;  // the same below
  add("SAE MSE, layer 1", "sae1_mse", ".03970");
  add("SAE mean z, layer 1", "sae1_l1", ".04928");
  add("latents > .3 of 256, layer 1, first image", "sae1_above_in_first", "7");
  add("latents > .3 of 256, layer 1, mean", "sae1_above", "");
}

// Whether the counts fall from each pair of lambdas to the next, of the same beginning.
std::optional<double> counts_fall(const LabResults& r) {
  std::optional<double> falls;
  for (const bool closed : {false, true})
    for (const char* key : {"c12_above", "c23_above"}) {
      std::optional<double> before;
      for (const Point& p : kPoints) {
        if (p.closed != closed || !r.has(group_of(p))) continue;
        const double now = r.mean(group_of(p), key);
        if (before) falls = now < *before && falls.value_or(1) > 0 ? 1 : 0;
        before = now;
      }
    }
  return falls;
}

void add_joint(std::vector<LabRow>& rows, const LabResults& r) {
  constexpr double kShare = .01, kLost = .04;
  double meet = 0, least = 1;
  for (const Point& p : kPoints) {
    if (!r.has(group_of(p))) continue;
    const double lost = r.mean(group_of(p), "lost");
    least = std::min(least, lost);
    if (lost <= kLost && r.mean(group_of(p), "c12_above_share") <= kShare) ++meet;
  }
  if (!is_reduced(r))
    rows.push_back(
        derived_row("least accuracy lost by simulating", least, ".038", Band{.high = .05}));
  rows.push_back(derived_row("pairs of lambdas with <= 1 % of weights > .1 (1 to 2), <= .04 lost",
                             meet, "1", Band{.low = 1}));
}

// H2's claim: a random beginning ends in a much lower loss than the closed form.
void add_beginnings(std::vector<LabRow>& rows, const LabResults& r) {
  for (const Point& p : kPoints) {
    const std::string closed = group_of({p.sae, p.weight, true, true});
    if (p.closed || !r.has(group_of(p)) || !r.has(closed)) continue;
    for (const char* key : {"c12_mse", "c23_mse"})
      rows.push_back(claim_row(fmt::format("({}, {}): closed form's MSE over random's, {}", p.sae,
                                           p.weight, key[1] == '1' ? "1 to 2" : "2 to 3"),
                               r.mean(closed, key) / r.mean(group_of(p), key), "> 1", {.low = 1}));
  }
}

std::vector<LabRow> connector_table(const LabResults& r) {
  if (r.all().empty()) return {};
  const std::string any = r.all()[0].group;
  const std::optional<Band> base = is_reduced(r) ? std::nullopt : std::optional(Band{.low = .970});
  constexpr Band kNeuronShare{.low = .35};
  std::vector<LabRow> rows = {
      r.row("base accuracy, after the last epoch", any, "base", ".978", base),
      r.row("base accuracy, of the best epoch", any, "base_best", ""),
      r.row("base loss, after the last epoch", any, "base_loss", ".09"),
      r.row("neuron weights > .1 of 4,096, 1 to 2", any, "c12_neurons_above", "2205"),
      r.row("  as a share", any, "c12_neurons_above_share", ".538", kNeuronShare),
      r.row("  as a share, 2 to 3", any, "c23_neurons_above_share", "", kNeuronShare)};
  for (const Point& p : kPoints) add_point(rows, r, p);
  rows.push_back(derived_row("weights > .1 fall as the lambdas grow (1 = yes)", counts_fall(r), "",
                             Band{1, 1}));
  add_joint(rows, r);
  add_beginnings(rows, r);
  return rows;
}

}  // namespace

LabExperiment connectors_experiment() {
  return {
      "connectors",
      "H1 to H4, A7, B2",
      "MNIST: autoencoders of a classifier's layers, and sparse connectors between their latents",
      connector_cells,
      connector_table,
      check_mnist};
}

}  // namespace megadict
