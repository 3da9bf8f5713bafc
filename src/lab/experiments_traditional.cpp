// C8: traditional dictionary learning over the grid of appendix F.
#include <fmt/format.h>

#include "lab/cells.h"
#include "lab/experiments.h"
#include "lab/lars_learning.h"
#include "lab/scores.h"

namespace megadict {

namespace {

constexpr uint64_t kSeed = 42;
constexpr int64_t kLatents[] = {16, 32, 64, 128, 256}, kWidths[] = {8, 16, 32},
                  kActive[] = {3, 6, 9};
constexpr double kLambdaCode = .05;  // while learning it is 1, as the library has it
constexpr const char* kSameLambda = "_same_lambda";  // .05 there, too

std::string group_of(int64_t latents, int64_t width, int64_t k) {
  return fmt::format("N{}_M{}_K{}", latents, width, k);
}

bool is_quick(int64_t latents, int64_t width, int64_t k) {
  return k == 3 && ((latents == 16 && width == 8) || (latents == 32 && width == 16));
}

void add_fit(std::vector<LabCell>& cells, const std::string& group, const LabData& data,
             LarsLearning s, int64_t count) {
  const auto size = static_cast<double>(data.options.n_latents * data.options.width) / 128;
  for (int64_t seed = 0; seed < count; ++seed) {
    s.seed = model_seed(data, seed);
    cells.push_back({.group = group,
                     .seed = seed,
                     .cost_s = 2 * size,
                     .settings = {{"data", data_json(data, seed)},
                                  {"sign", data.options.sign},
                                  {"lambda_fit", s.lambda},
                                  {"lambda_code", kLambdaCode},
                                  {"rounds", s.rounds}},
                     .run = [=] {
                       const LabProblem p = problem_of(data, seed);
                       const Learnt<float> d = learn_by_lars(p.x_train, s);
                       const Tiles<float> codes = signed_lars_codes(d, p.x_test, kLambdaCode);
                       return nlohmann::ordered_json{
                           {"latent_mcc", latent_mcc(p.s_test, codes)},
                           {"dictionary_mcc", dictionary_mcc(p.dictionary, d)},
                           {"dictionary_cosine", dictionary_cosine(p.dictionary, d)}};
                     }});
  }
}

std::vector<LabCell> traditional_cells(const LabScale& scale) {
  std::vector<LabCell> cells;
  for (const int64_t latents : kLatents)
    for (const int64_t width : kWidths)
      for (const int64_t k : kActive) {
        if (scale.quick && !is_quick(latents, width, k)) continue;
        LabData data = data_of(scale, kSeed);
        data.options.n_latents = latents;
        data.options.width = width;
        data.options.k = k;
        data.options.sign = "signed";
        LarsLearning s = {.latents = latents, .lambda = scale.lambda > 0 ? scale.lambda : 1};
        if (scale.steps > 0) s.rounds = scale.steps;
        const int64_t count = seeds_of(scale, is_quick(latents, width, k) ? 3 : 1);
        add_fit(cells, group_of(latents, width, k), data, s, count);
        if (!is_quick(latents, width, k)) continue;
        s.lambda = kLambdaCode;
        add_fit(cells, group_of(latents, width, k) + kSameLambda, data, s, count);
      }
  return cells;
}

std::vector<LabRow> traditional_table(const LabResults& r) {
  std::vector<LabRow> rows;
  for (const int64_t latents : kLatents)
    for (const int64_t width : kWidths)
      for (const int64_t k : kActive) {
        const std::string group = group_of(latents, width, k);
        if (!r.has(group)) continue;
        const bool known = latents == 16 && width == 8 && k == 3;
        const auto what = [&](const char* number) {
          return fmt::format("N {}, M {}, K {}: {}", latents, width, k, number);
        };
        rows.push_back(r.row(what("latent MCC"), group, "latent_mcc", known ? ".932" : "",
                             known ? std::optional(Band{.88}) : std::nullopt));
        rows.push_back(r.row(what("dictionary MCC"), group, "dictionary_mcc", known ? ".986" : "",
                             known ? std::optional(Band{.95}) : std::nullopt));
        for (const char* key : {"latent_mcc", "dictionary_mcc"})
          if (r.has(group + kSameLambda))
            rows.push_back(
                r.row(what(key) + ", lambda .05 while learning", group + kSameLambda, key, ""));
      }
  return rows;
}

}  // namespace

LabExperiment traditional_experiment() {
  return {"traditional", "C8", "signed codes by lasso-LARS, atoms by block coordinates (App F)",
          traditional_cells, traditional_table};
}

}  // namespace megadict
