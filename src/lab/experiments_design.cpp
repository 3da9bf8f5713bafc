// E6: the dictionary's Gram matrix without unit columns. E7: width of the MLP. E8: biases.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "lab/cells.h"
#include "lab/experiments.h"
#include "lab/scores.h"

namespace megadict {

namespace {

constexpr uint64_t kBase = 20240926;

std::vector<std::vector<double>> matrix_of(const at::Tensor& square) {
  std::vector<std::vector<double>> rows;
  const at::Tensor d = square.to(at::kDouble).contiguous();
  for (int64_t i = 0; i < d.size(0); ++i) {
    const auto* first = d.const_data_ptr<double>() + i * d.size(1);
    rows.emplace_back(first, first + d.size(1));
  }
  return rows;
}

// D^T D with a softmax along each row, as the authors draw it, and the cosines.
nlohmann::ordered_json gram_numbers(const Learnt<float>& dictionary) {
  const at::Tensor rows = columns_of(dictionary).to(at::kDouble);
  const at::Tensor unit = rows / rows.norm(2, {1}, true).clamp_min(1e-12);
  const at::Tensor cosine = at::mm(unit, unit.t());
  const at::Tensor others = cosine - at::diag(at::diag(cosine));
  const std::vector<double> crowding = superposition(dictionary);
  double sum = 0;
  for (const double one : crowding) sum += one;
  return {{"superposition_mean", sum / static_cast<double>(crowding.size())},
          {"superposition_max", *std::max_element(crowding.begin(), crowding.end())},
          {"largest_cosine", others.abs().max().item<double>()},
          {"softmax_gram", matrix_of(at::softmax(at::mm(rows, rows.t()), 1))},
          {"cosine_gram", matrix_of(cosine)}};
}

void add_gram_cells(std::vector<LabCell>& cells, const std::string& group, const LabData& data,
                    const MethodSettings& settings, int64_t count, double cost_s) {
  const size_t first = cells.size();
  add_cells(cells, group, data, settings, count, cost_s);
  for (size_t i = first; i < cells.size(); ++i) {
    MethodSettings own = settings;
    const int64_t seed = cells[i].seed;
    own.seed = model_seed(data, seed);
    cells[i].settings["gram"] = true;
    cells[i].run = [=] {
      const LabProblem problem = problem_of(data, seed);
      const Learned learned = learn(problem, own);
      nlohmann::ordered_json numbers = scores_json(problem, own, learned);
      numbers.update(gram_numbers(learned.dictionary));
      return numbers;
    };
  }
}

std::vector<LabCell> gram_cells(const LabScale& scale) {
  const LabData data = data_of(scale, kBase);
  std::vector<LabCell> cells;
  for (const int64_t latents : {16, 24, 12}) {
    MethodSettings codes = apply(scale, {.method = "codes",
                                         .k = data.options.k,
                                         .lambda = .1,
                                         .rate = 1e-2,
                                         .steps = 50000,
                                         .unit_columns = false,
                                         .on_train = true});
    codes.latents = latents;
    MethodSettings sae = codes, mlp = codes;
    sae.method = mlp.method = "sae";
    mlp.hidden = {256};
    mlp.rate = 1e-4;
    const int64_t seeds = seeds_of(scale, 3);
    const bool same = latents == 16;
    for (MethodSettings s : {codes, sae}) {  // L2b
      s.unit_columns = true;
      add_gram_cells(cells, fmt::format("{}{}_unit", s.method, latents), data, s, same ? seeds : 1,
                     12);
    }
    add_gram_cells(cells, fmt::format("codes{}", latents), data, codes, same ? seeds : 1, 12);
    add_gram_cells(cells, fmt::format("sae{}", latents), data, sae, same ? seeds : 1, 10);
    if (!scale.quick)
      add_gram_cells(cells, fmt::format("mlp256_{}", latents), data, mlp, scale.full ? seeds : 1,
                     330);
  }
  return cells;
}

std::vector<LabRow> gram_table(const LabResults& r) {
  std::vector<LabRow> rows;
  const auto add = [&](const char* what, const char* group, double latent, double dictionary) {
    rows.push_back(r.row(fmt::format("{}, latent MCC", what), group, "latent_mcc",
                         fmt::format("{:.3f}", latent), Band{latent - .1, latent + .1}));
    rows.push_back(r.row(fmt::format("{}, dictionary MCC", what), group, "dictionary_mcc",
                         fmt::format("{:.3f}", dictionary),
                         Band{dictionary - .1, dictionary + .1}));
  };
  add("sparse coding", "codes16", .613, .802);
  add("SAE", "sae16", .475, .721);
  add("MLP 256", "mlp256_16", .443, .702);
  const auto ahead = [&](const char* key) {
    return r.has("codes16") && r.has("sae16")
               ? std::optional(r.mean("codes16", key) - r.mean("sae16", key))
               : std::nullopt;
  };
  rows.push_back(derived_row("sparse coding above the SAE, latent MCC, by", ahead("latent_mcc"),
                             ".138", Band{0}));
  rows.push_back(derived_row("sparse coding above the SAE, dictionary MCC, by",
                             ahead("dictionary_mcc"), ".081", Band{0}));
  for (const char* group : {"codes16", "sae16", "mlp256_16", "codes24", "sae24", "mlp256_24",
                            "codes12", "sae12", "mlp256_12"}) {
    if (!r.has(group)) continue;
    rows.push_back(r.row(fmt::format("{}: superposition (D10), mean", group), group,
                         "superposition_mean", ""));
    rows.push_back(r.row(fmt::format("{}: largest |cosine| of two columns", group), group,
                         "largest_cosine", ""));
    const std::string unit = fmt::format("{}_unit", group);
    if (!r.has(unit)) continue;
    for (const char* key : {"superposition_mean", "largest_cosine", "latent_mcc", "dictionary_mcc"})
      rows.push_back(r.row(fmt::format("{}, unit columns: {}", group, key), unit, key, ""));
    rows.push_back(
        claim_row(fmt::format("claim (L2b), {}: unit / free superposition", group),
                  r.mean(unit, "superposition_mean") / r.mean(group, "superposition_mean"),
                  "below 1", {0, 1}));
  }
  return rows;
}

struct Shape {
  int64_t latents, width, k;
};
constexpr Shape kShapes[] = {{16, 8, 3}, {32, 16, 6}, {64, 16, 6}};
constexpr int64_t kHidden[] = {16, 32, 64, 128, 256, 512};

std::string width_group(const Shape& shape, int64_t hidden) {
  return fmt::format("N{}_M{}_h{}", shape.latents, shape.width, hidden);
}

std::vector<LabCell> width_cells(const LabScale& scale) {
  std::vector<LabCell> cells;
  for (const Shape& shape : kShapes)
    for (const int64_t hidden : kHidden) {
      if (scale.quick && (shape.latents != 16 || (hidden != 16 && hidden != 64 && hidden != 256)))
        continue;
      LabData data = data_of(scale, kBase);
      data.options.n_latents = shape.latents;
      data.options.width = shape.width;
      data.options.k = shape.k;
      MethodSettings mlp = {.latents = shape.latents,
                            .hidden = {hidden},
                            .k = shape.k,
                            .rate = 3e-4,
                            .steps = scale.quick  ? 5000
                                     : scale.full ? 100000
                                                  : 20000};
      if (scale.steps > 0) mlp.steps = scale.steps;
      if (scale.rate > 0) mlp.rate = scale.rate;
      const auto layers = static_cast<double>(hidden * (shape.latents + shape.width));
      add_cells(cells, width_group(shape, hidden), data, mlp, seeds_of(scale, scale.full ? 3 : 1),
                1e-6 * static_cast<double>(mlp.steps) * layers);
    }
  return cells;
}

// "Both rise with the width, and drop slightly at 512."
void add_width_claims(std::vector<LabRow>& rows, const LabResults& r, const Shape& shape) {
  const auto add = [&](const char* key, int64_t wide, int64_t narrow, const char* text,
                       Band where) {
    const std::string a = width_group(shape, wide), b = width_group(shape, narrow);
    if (!r.has(a) || !r.has(b)) return;
    rows.push_back(claim_row(fmt::format("claim, N {}, M {}: {} of h {} less that of h {}",
                                         shape.latents, shape.width, key, wide, narrow),
                             r.mean(a, key) - r.mean(b, key), text, where));
  };
  for (const char* key : {"latent_mcc", "dictionary_mcc"}) {
    add(key, 256, 16, "> 0", {.low = 0});
    add(key, 512, 256, "< 0", {.high = 0});
  }
}

std::vector<LabRow> width_table(const LabResults& r) {
  std::vector<LabRow> rows;
  for (const Shape& shape : kShapes)
    for (const char* key : {"loss", "latent_mcc", "dictionary_mcc", "l0"})
      for (const int64_t hidden : kHidden) {
        const std::string group = width_group(shape, hidden);
        if (r.has(group))
          rows.push_back(
              r.row(fmt::format("N {}, M {}, h {}: {}", shape.latents, shape.width, hidden, key),
                    group, key, ""));
      }
  for (const Shape& shape : kShapes) add_width_claims(rows, r, shape);
  return rows;
}

std::vector<LabCell> bias_cells(const LabScale& scale) {
  const LabData data = data_of(scale, kBase);
  const MethodSettings sae = apply(scale, {.latents = data.options.n_latents,
                                           .k = data.options.k,
                                           .steps = scale.quick ? 20000 : 100000});
  MethodSettings codes = sae, mlp = sae;
  codes.method = "codes";
  mlp.hidden = {64};
  if (scale.rate == 0) mlp.rate = 1e-4;
  const double thousands = static_cast<double>(sae.steps) / 1000;
  std::vector<LabCell> cells;
  for (const bool bias : {true, false}) {
    const char* suffix = bias ? "bias" : "none";
    for (auto& [name, settings, cost_s, few] :
         {std::tuple("sae", sae, .2, false), std::tuple("codes", codes, .22, false),
          std::tuple("mlp64", mlp, 2.0, true)}) {
      if (few && scale.quick) continue;
      MethodSettings own = settings;
      own.bias = bias;
      add_cells(cells, fmt::format("{}_{}", name, suffix), data, own, seeds_of(scale, 3),
                cost_s * thousands);
    }
  }
  return cells;
}

std::vector<LabRow> bias_table(const LabResults& r) {
  const auto pair = [&](std::vector<LabRow>& rows, const char* what, const char* group,
                        const char* key, double with, double without, bool relative) {
    const auto add = [&](const char* suffix, double reported) {
      const double by = relative ? .15 * reported : .06;
      rows.push_back(r.row(fmt::format("{}, {}", what, suffix), fmt::format("{}_{}", group, suffix),
                           key, fmt::format("{:.3g}", reported),
                           Band{reported - by, reported + by}));
    };
    add("bias", with);
    add("none", without);
  };
  std::vector<LabRow> rows;
  pair(rows, "SAE latent MCC", "sae", "latent_mcc", .563, .567, false);
  pair(rows, "SAE loss", "sae", "loss", .00201, .00212, true);
  pair(rows, "SAE active share above 1e-4", "sae", "l0_1e-4", .495, .495, false);
  pair(rows, "sparse coding latent MCC", "codes", "latent_mcc", .623, .669, false);
  pair(rows, "sparse coding dictionary MCC", "codes", "dictionary_mcc", .816, .821, false);
  const bool both = r.has("sae_bias") && r.has("sae_none");
  rows.push_back(derived_row("SAE: |difference| in MCC",
                             both ? std::optional(std::abs(r.mean("sae_bias", "latent_mcc") -
                                                           r.mean("sae_none", "latent_mcc")))
                                  : std::nullopt,
                             ".004", Band{0, .05}));
  for (const char* group : {"mlp64_bias", "mlp64_none"})
    if (r.has(group)) {
      rows.push_back(r.row(fmt::format("{}: latent MCC", group), group, "latent_mcc", ""));
      rows.push_back(
          r.row(fmt::format("{}: active share above 1e-4", group), group, "l0_1e-4", ""));
    }
  if (r.has("mlp64_bias") && r.has("mlp64_none"))
    for (const char* key : {"latent_mcc", "l0_1e-4"})
      rows.push_back(claim_row(fmt::format("claim, MLP 64: {} without bias less with", key),
                               r.mean("mlp64_none", key) - r.mean("mlp64_bias", key), "> 0",
                               {.low = 0}));
  return rows;
}

}  // namespace

LabExperiment gram_experiment() {
  return {"gram", "E6, D10, L2b",
          "the dictionary's Gram matrix without unit columns (Fig 9 to 11), and with", gram_cells,
          gram_table};
}

LabExperiment width_experiment() {
  return {"width", "E7", "width of the MLP encoder (Fig 12)", width_cells, width_table};
}

LabExperiment bias_experiment() {
  return {"bias", "E8, B10", "with and without biases (Fig 13)", bias_cells, bias_table};
}

}  // namespace megadict
