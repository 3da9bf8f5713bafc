// What an amortised encoder gives away, and where: quality against operations and seconds of every
// method, on the default problem and over E4's grid.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/clock.h"
#include "lab/cells.h"
#include "lab/experiments.h"
#include "lab/flops.h"
#include "lab/scores.h"

namespace megadict {

namespace {

constexpr uint64_t kBase = 20240926;
constexpr double kLasso = .05;  // lambda_F where codes are a lasso's

struct Size {
  int64_t width, latents;
};
constexpr Size kSizes[] = {{8, 16},  {8, 32},   {8, 64},  {8, 128}, {16, 16}, {16, 32},
                           {16, 64}, {16, 128}, {32, 16}, {32, 32}, {32, 64}, {32, 128}};

// What an encoder's codes are: one pass of the encoder, or something else for its dictionary.
struct Row {
  const char *name, *method;
  int64_t hidden;  // 0 = a linear encoder
  int64_t steps;
  double rate;
  bool is_encoder;  // codes by one pass
};
constexpr Row kRows[] = {
    {"dl_fista", "dl_fista", 0, 0, 0, false},
    {"sae", "sae", 0, 40000, 1e-3, true},
    {"mlp32", "sae", 32, 40000, 1e-3, true},
    {"mlp256", "sae", 256, 20000, 1e-3, true},
    {"topk", "topk", 0, 10000, 3e-3, true},
    {"gated", "gated", 0, 20000, 3e-3, true},
    {"jumprelu", "jumprelu", 0, 20000, 3e-3, true},
    {"prolu", "prolu", 0, 20000, 3e-3, true},
    {"codes", "codes", 0, 20000, 1e-3, false},
    {"ito", "sae_then_codes", 0, 40000, 1e-3, false},
    {"ito_warm", "sae_then_warm_codes", 0, 40000, 1e-3, false},
    {"imitation", "imitation", 0, 20000, 1e-3, true},
    {"imitation_mlp256", "imitation", 256, 20000, 1e-3, true},
    {"kmeans", "kmeans", 0, 0, 0, false},
};

std::string group_of(const Size& size, const char* row) {
  return fmt::format("M{}_N{}_{}", size.width, size.latents, row);
}

// The other encoders' penalties are not of the same kind as the linear one's.
double lambda_of(const Row& row) {
  const std::string_view method = row.method;
  if (method == "dl_fista" || method == "imitation") return kLasso;
  if (method == "gated" || method == "prolu") return .1;
  return method == "jumprelu" ? .03 : .01;
}

MethodSettings settings_of(const Row& row, const LabScale& scale, const LabData& data) {
  MethodSettings s = {.method = row.method,
                      .latents = data.options.n_latents,
                      .k = data.options.k,
                      .lambda = lambda_of(row),
                      .rate = row.rate,
                      .steps = row.steps};
  if (row.hidden > 0) s.hidden = {row.hidden};
  if (s.method == "gated" || s.method == "jumprelu") s.beta1 = 0;
  // Gradient sparse coding is at its worst after 5,000 steps (E3): no shorter form of it.
  if (scale.quick && s.method != "codes") s.steps /= 4;
  if (scale.steps > 0 && s.steps > 0) s.steps = scale.steps;
  return s;
}

// FISTA's two products a step, on all samples; C8b besides S^T S, X^T S and three passes over the
// atoms. Nothing of it was counted by the paper.
double fista_flops(const FlopShape& shape, int64_t steps) {
  return 4.0 * static_cast<double>(shape.width * shape.latents * shape.samples * steps);
}
double dl_fista_flops(const FlopShape& shape, const MethodSettings& s) {
  const auto m = static_cast<double>(shape.width), n = static_cast<double>(shape.latents);
  const auto samples = static_cast<double>(shape.samples);
  const double atoms = samples * 2 * n * (n + m) + 3 * 2 * m * n * n;
  return static_cast<double>(s.rounds) * (fista_flops(shape, s.inner) + atoms);
}

// Of training; of the codes of the test half.
struct Flops {
  double training = 0, inference = 0;
};

Flops flops_of(const Row& row, const MethodSettings& s, const LabData& data, FlopMode mode) {
  constexpr int64_t kTestSteps = 500;
  FlopShape shape{.width = data.options.width,
                  .latents = s.latents,
                  .hidden = row.hidden,
                  .samples = data.samples / 2,
                  .batch = data.samples / 2};
  const std::string_view method = row.method;
  const bool deep = row.hidden > 0;
  const auto encoder = [&] {
    return Flops{
        static_cast<double>(deep ? mlp_training_flops(shape, s.steps, mode)
                                 : sae_training_flops(shape, s.steps, mode)),
        static_cast<double>(deep ? mlp_inference_flops(shape) : sae_inference_flops(shape))};
  };
  if (method == "dl_fista") return {dl_fista_flops(shape, s), fista_flops(shape, kTestSteps)};
  if (method == "kmeans") return {};
  if (method == "codes")
    return {static_cast<double>(coding_training_flops(shape, s.steps, mode)),
            static_cast<double>(ito_flops(shape, s.code_steps))};
  if (method == "imitation") {
    shape.learns_dictionary = false;
    Flops flops = encoder();
    flops.training += dl_fista_flops(shape, s) + fista_flops(shape, kTestSteps);
    return flops;
  }
  Flops flops = encoder();
  if (method.starts_with("sae_then"))
    flops.inference += static_cast<double>(ito_flops(shape, s.code_steps));
  return flops;
}

nlohmann::ordered_json run_row(const Row& row, const MethodSettings& s, const LabData& data,
                               int64_t seed) {
  const LabProblem problem = problem_of(data, seed);
  const double begin = seconds_now();
  const Learned learned = learn(problem, s);
  const double seconds = seconds_now() - begin;
  nlohmann::ordered_json numbers = scores_json(problem, s, learned);
  const Tiles<float> omp = pursuit_codes("omp", learned.dictionary, problem.x_test, s.k, 0);
  const Tiles<float> lars = pursuit_codes("lars", learned.dictionary, problem.x_test, s.k, kLasso);
  numbers["omp_mcc"] = latent_mcc(problem.s_test, omp);
  numbers["lars_mcc"] = latent_mcc(problem.s_test, lars);
  for (const auto& [mode, name] :
       {std::pair(FlopMode::consistent, "consistent"), std::pair(FlopMode::paper, "paper")}) {
    const Flops flops = flops_of(row, s, data, mode);
    numbers[fmt::format("training_flops_{}", name)] = flops.training;
    numbers["inference_flops"] = flops.inference;
  }
  numbers["time_s"] = seconds;
  return numbers;
}

std::vector<LabCell> headline_cells(const LabScale& scale) {
  std::vector<LabCell> cells;
  for (const Size& size : kSizes) {
    const bool asked = (scale.width == 0 || scale.width == size.width) &&
                       (scale.latents == 0 || scale.latents == size.latents);
    if (!asked || (scale.quick && (size.width != 8 || size.latents != 16))) continue;
    LabData data = data_of(scale, kBase);
    data.options.width = size.width;
    data.options.n_latents = size.latents;
    const auto times = static_cast<double>(size.width * size.latents) / 128;
    for (const Row& row : kRows) {
      const MethodSettings s = settings_of(row, scale, data);
      const auto weights = static_cast<double>(1 + row.hidden * 24 / 128);
      const double cost_s = times * (2 + 7e-5 * weights * static_cast<double>(s.steps));
      for (int64_t seed = 0; seed < seeds_of(scale, scale.quick ? 1 : 3); ++seed) {
        MethodSettings own = s;
        own.seed = model_seed(data, seed);
        cells.push_back(
            {.group = group_of(size, row.name),
             .seed = seed,
             .cost_s = cost_s,
             .settings = {{"data", data_json(data, seed)}, {"model", settings_json(own)}},
             .run = [=, &row] { return run_row(row, own, data, seed); }});
      }
    }
  }
  return cells;
}

// The best encoder's distance from DL-FISTA with M over the line of compressed sensing (A2): what
// amortising gives away, and where.
void add_given_away(std::vector<LabRow>& rows, const LabResults& r, const Size& size) {
  const std::string fista = group_of(size, "dl_fista");
  if (!r.has(fista)) return;
  const double share = static_cast<double>(size.width) / cs_line(size.latents, 3);
  for (const char* key : {"latent_mcc", "dictionary_mcc"}) {
    const Row* best = nullptr;
    for (const Row& row : kRows) {
      if (!row.is_encoder || std::string_view(row.method) == "imitation") continue;
      if (!r.has(group_of(size, row.name))) continue;
      if (best == nullptr ||
          r.mean(group_of(size, row.name), key) > r.mean(group_of(size, best->name), key))
        best = &row;
    }
    if (best == nullptr) continue;
    rows.push_back(derived_row(
        fmt::format("M {}, N {}, M / 2K ln(N/K) {:.2f}: DL-FISTA above the best encoder, {}",
                    size.width, size.latents, share, key),
        r.mean(fista, key) - r.mean(group_of(size, best->name), key), ""));
    rows.back().note = best->name;
  }
  for (const char* name : {"imitation", "imitation_mlp256"})
    if (r.has(group_of(size, name)) && r.has(group_of(size, "sae"))) {
      const double encoder = r.mean(group_of(size, "sae"), "latent_mcc");
      const double gap = r.mean(fista, "latent_mcc") - encoder;
      rows.push_back(derived_row(fmt::format("  share of the SAE's gap that {} closes", name),
                                 (r.mean(group_of(size, name), "latent_mcc") - encoder) / gap, ""));
    }
}

std::vector<LabRow> headline_table(const LabResults& r) {
  struct Number {
    const char *key, *text;
  };
  constexpr Number kNumbers[] = {{"latent_mcc", "latent MCC"},
                                 {"dictionary_mcc", "dictionary MCC"},
                                 {"mse", "MSE"},
                                 {"omp_mcc", "latent MCC by OMP"},
                                 {"lars_mcc", "latent MCC by LARS"},
                                 {"training_flops_consistent", "training FLOPs, consistent"},
                                 {"training_flops_paper", "training FLOPs, paper"},
                                 {"inference_flops", "inference FLOPs"},
                                 {"time_s", "seconds"}};
  std::vector<LabRow> rows;
  for (const Size& size : kSizes) add_given_away(rows, r, size);
  for (const Size& size : kSizes)
    for (const Row& row : kRows)
      for (const Number& number : kNumbers) {
        const std::string group = group_of(size, row.name);
        if (r.has(group) &&
            (row.steps > 0 || std::string_view(number.key) != "training_flops_paper"))
          rows.push_back(r.row(
              fmt::format("M {}, N {}, {}: {}", size.width, size.latents, row.name, number.text),
              group, number.key, ""));
      }
  return rows;
}

}  // namespace

LabExperiment headline_experiment() {
  return {"headline", "C8b, all methods, F", "what the amortised encoder gives away, and where",
          headline_cells, headline_table};
}

}  // namespace megadict
