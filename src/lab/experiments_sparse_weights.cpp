// L2g: connectors (from the closed form) whose small weights are zeroed, and what that saves.
#include <fmt/format.h>

#include <cmath>
#include <memory>

#include "lab/cells.h"
#include "lab/experiments.h"
#include "lab/network_cells.h"
#include "lab/sparse_product.h"

namespace megadict {

namespace {

constexpr int64_t kTimedImages = 10000;

struct Point {
  double sae, weight;
  bool quick;
};
constexpr Point kPoints[] = {{.1, 10, false}, {.3, 20, true}, {.5, 50, true}};

std::string group_of(const Point& p) {
  return fmt::format("s{}_w{}", p.sae, p.weight);
}

// Codes of `images` validation images, over again until there are that many.
Tiles<float> timed_codes(const BaseNetwork& base, const SmallSae<float>& sae, size_t layer,
                         int64_t images) {
  const Rows codes = codes_of(sae, base.validation[layer]);
  std::vector<int32_t> which(static_cast<size_t>(images));
  for (size_t i = 0; i < which.size(); ++i)
    which[i] = static_cast<int32_t>(static_cast<int64_t>(i) % codes.count);
  Tiles<float> tiles(images, codes.width);
  gather_rows(codes, which, tiles);
  return tiles;
}

Connector<float> without_small(Connector<float> connector) {
  for (float& w : connector.map.weight.value)
    if (!(std::abs(w) > static_cast<float>(kLargeWeight))) w = 0;
  return connector;
}

// The same step of the classifier itself: what a connector stands for.
double neuron_layer_s(const BaseNetwork& base, size_t layer, int64_t images) {
  std::vector<int32_t> which(static_cast<size_t>(images));
  for (size_t i = 0; i < which.size(); ++i)
    which[i] = static_cast<int32_t>(static_cast<int64_t>(i) % base.validation[layer].count);
  Tiles<float> x(images, kNeurons);
  gather_rows(base.validation[layer], which, x);
  return time_products(base.net.layers()[layer + 1], 0, x).dense_s();
}

nlohmann::ordered_json run_point(NetworkWorkshop& workshop, const NetworkSettings& s,
                                 const Point& p, int64_t images) {
  const BaseNetwork& base = workshop.base(s);
  const std::vector<LayerSae>& saes = workshop.saes(s, DecoderKind::tied, p.sae);
  const std::vector<LayerConnector> whole = train_connectors(base, saes, true, p.weight);
  const Connector<float> cut[] = {without_small(whole[0].connector),
                                  without_small(whole[1].connector)};
  const Accuracies before = accuracies(base, saes, connectors_of(whole));
  const Accuracies after = accuracies(base, saes, {&cut[0], &cut[1]});
  ProductTimes sum;
  double kept = 0, all = 0, neurons_s = 0, neurons = 0;
  for (size_t l = 0; l < whole.size(); ++l) {
    const Linear<float>& map = whole[l].connector.map;
    const ProductTimes times =
        time_products(map, kLargeWeight, timed_codes(base, saes[l].sae, l, images));
    sum.compressed_s += times.compressed_s;
    sum.tiles_s += times.tiles_s;
    sum.gemm_s += times.gemm_s;
    kept += static_cast<double>(count_above(map.weight, kLargeWeight));
    all += static_cast<double>(map.weight.value.size());
    neurons += static_cast<double>(base.net.layers()[l + 1].weight.value.size());
    neurons_s += neuron_layer_s(base, l, images);
  }
  return {
      {"base", before.base},
      {"before", before.simulated},
      {"after", after.simulated},
      {"lost", before.simulated - after.simulated},
      {"kept", kept},
      {"kept_share", kept / all},
      {"kept_of_neurons", kept / neurons},
      {"kept_with_ends", (kept + static_cast<double>(2 * s.latents * kNeurons)) / neurons},
      {"time_compressed_ms", 1000 * sum.compressed_s},
      {"time_tiles_ms", 1000 * sum.tiles_s},
      {"time_gemm_ms", 1000 * sum.gemm_s},
      {"time_neurons_ms", 1000 * neurons_s},
      {"time_speedup", sum.dense_s() / sum.compressed_s},
      {"time_neurons_over_compressed", neurons_s / sum.compressed_s},
      {"time_break_even", break_even_density(s.latents, s.latents,
                                             timed_codes(base, saes[0].sae, 0, images), s.seed)}};
}

std::vector<LabCell> sparse_cells(const LabScale& scale) {
  const auto workshop = std::make_shared<NetworkWorkshop>(scale.mnist);
  const int64_t images = scale.samples > 0 ? scale.samples / 2 : kTimedImages;
  std::vector<LabCell> cells;
  for (int64_t seed = 0; seed < seeds_of(scale, scale.quick ? 1 : 3); ++seed)
    for (const Point& p : kPoints) {
      if (scale.quick && !p.quick) continue;
      const NetworkSettings s = network_settings(scale, seed);
      const NetworkCost cost = cost_of(s);
      cells.push_back(
          {.group = group_of(p),
           .seed = seed,
           .cost_s = 2 + cost.base_s / 2 + cost.saes_s + cost.connectors_s,
           .settings = {{"network", settings_json(s)}, {"lambda_s", p.sae}, {"lambda_w", p.weight}},
           .run = [=] { return run_point(*workshop, s, p, images); }});
    }
  return cells;
}

std::vector<LabRow> sparse_table(const LabResults& r) {
  std::vector<LabRow> rows;
  for (const Point& p : kPoints) {
    const std::string group = group_of(p);
    if (!r.has(group)) continue;
    const auto add = [&](const char* what, const char* key, const char* reported,
                         std::optional<Band> claim = {}) {
      rows.push_back(
          r.row(fmt::format("({}, {}): {}", p.sae, p.weight, what), group, key, reported, claim));
      rows.back().claim = claim.has_value();
    };
    add("simulated accuracy, all weights", "before", "");
    add("simulated accuracy, |w| <= .1 zeroed", "after", "");
    add("weights kept of 131,072, both connectors", "kept", "");
    add("  as a share", "kept_share", "");
    add("  over the 8,192 of the neuron layers", "kept_of_neurons", "a fraction", Band{.high = 1});
    add("    with the encoder before and the decoder behind them", "kept_with_ends", "");
    add("compressed rows, ms for 10,000 images", "time_compressed_ms", "");
    add("dense, this program's tiles, ms", "time_tiles_ms", "");
    add("dense, LibTorch, ms", "time_gemm_ms", "");
    add("  the faster dense one over compressed rows", "time_speedup", "> 1", Band{.low = 1});
    add("the neuron layers (64 x 64, dense), ms", "time_neurons_ms", "");
    add("  over compressed rows: > 1 = latents are quicker", "time_neurons_over_compressed", "> 1",
        Band{.low = 1});
    add("density at which compressed rows start to win", "time_break_even", "");
  }
  return rows;
}

}  // namespace

LabExperiment sparse_weights_experiment() {
  return {"sparse_weights",
          "L2g",
          "MNIST: connectors without their small weights, compressed rows against dense",
          sparse_cells,
          sparse_table,
          check_mnist};
}

}  // namespace megadict
