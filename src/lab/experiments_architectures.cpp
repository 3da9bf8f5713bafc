// L2d: every encoder of the seeds at about the true number of active latents, and what pursuits
// make of the dictionary it learnt.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "lab/cells.h"
#include "lab/experiments.h"
#include "lab/scores.h"

namespace megadict {

namespace {

constexpr uint64_t kBase = 20240926;
constexpr double kLambdas[] = {.003, .01, .03, .1, .3, 1, 3};
constexpr double kLambdaLars = .05;
constexpr const char* kPursuits[] = {"mp", "gp", "omp", "lars"};

struct Architecture {
  const char *method, *what;
  bool chooses_lambda;
  double rate, beta1;
};
constexpr Architecture kArchitectures[] = {
    {"sae", "ReLU (B1)", true, 3e-3, .9},        {"topk", "TopK, k = K (B6)", false, 3e-3, .9},
    {"gated", "gated (B7)", true, 3e-3, 0},      {"jumprelu", "JumpReLU (B8)", true, 3e-3, 0},
    {"prolu", "ProLU (B9)", true, 3e-3, .9},     {"codes", "sparse coding (C1)", true, 3e-3, .9},
    {"dl_fista", "DL-FISTA (C8b)", false, 0, 0},
};

struct Problem {
  int64_t width, latents, k;
};
constexpr Problem kProblems[] = {{8, 16, 3}, {16, 32, 3}, {8, 64, 3}, {32, 32, 3}};

std::string group_of(const Problem& problem, const Architecture& one) {
  return fmt::format("M{}_N{}_{}", problem.width, problem.latents, one.method);
}

// Of the training half, which chooses.
double active_in_training(const LabProblem& problem, MethodSettings s) {
  s.on_train = true;
  return l0_fraction(learn(problem, s).codes, 1e-3) * static_cast<double>(s.latents);
}

// The lambda whose training half comes nearest to K active latents.
double chosen_lambda(const LabProblem& problem, const MethodSettings& s) {
  double best = kLambdas[0], apart = std::numeric_limits<double>::infinity();
  for (const double lambda : kLambdas) {
    MethodSettings with = s;
    with.lambda = lambda;
    const double active = std::max(active_in_training(problem, with), 1e-3);
    const double now = std::abs(std::log(active / static_cast<double>(s.k)));
    if (now < apart) apart = now, best = lambda;
  }
  return best;
}

nlohmann::ordered_json judge(const LabProblem& problem, MethodSettings s, bool chooses) {
  if (chooses) s.lambda = chosen_lambda(problem, s);
  const Learned learned = learn(problem, s);
  nlohmann::ordered_json numbers = scores_json(problem, s, learned);
  numbers["lambda"] = s.lambda;
  numbers["active"] =
      l0_fraction(learned.codes, 1e-3) * static_cast<double>(learned.codes.features());
  for (const char* name : kPursuits) {
    const Tiles<float> codes =
        pursuit_codes(name, learned.dictionary, problem.x_test, s.k, kLambdaLars);
    numbers[fmt::format("{}_mcc", name)] = latent_mcc(problem.s_test, codes);
  }
  return numbers;
}

std::vector<LabCell> architecture_cells(const LabScale& scale) {
  std::vector<LabCell> cells;
  for (const Problem& problem : kProblems) {
    if (scale.quick && problem.latents != 16) continue;
    LabData data = data_of(scale, kBase);
    data.options.width = problem.width;
    data.options.n_latents = problem.latents;
    data.options.k = problem.k;
    const auto size = static_cast<double>(problem.latents * problem.width) / 128;
    for (const Architecture& one : kArchitectures) {
      MethodSettings s = {.method = one.method,
                          .latents = problem.latents,
                          .k = problem.k,
                          .rate = one.rate,
                          .beta1 = one.beta1,
                          .steps = scale.quick ? 4000 : 20000};
      if (s.method == "dl_fista") s.lambda = .05;
      if (scale.steps > 0) s.steps = scale.steps;
      const double trainings = one.chooses_lambda ? 1.0 + std::size(kLambdas) : 1.0;
      for (int64_t seed = 0; seed < seeds_of(scale, scale.quick ? 1 : 3); ++seed) {
        s.seed = model_seed(data, seed);
        cells.push_back(
            {.group = group_of(problem, one),
             .seed = seed,
             .cost_s = 1e-4 * static_cast<double>(s.steps) * trainings * size,
             .settings = {{"data", data_json(data, seed)}, {"model", settings_json(s)}},
             .run = [=] { return judge(problem_of(data, seed), s, one.chooses_lambda); }});
      }
    }
  }
  return cells;
}

std::vector<LabRow> architecture_table(const LabResults& r) {
  std::vector<LabRow> rows;
  for (const Problem& problem : kProblems)
    for (const Architecture& one : kArchitectures) {
      const std::string group = group_of(problem, one);
      if (!r.has(group)) continue;
      const auto add = [&](const char* what, const std::string& key) {
        rows.push_back(
            r.row(fmt::format("M {}, N {}, {}: {}", problem.width, problem.latents, one.what, what),
                  group, key, ""));
      };
      add("active", "active");
      add("MSE", "mse");
      add("latent MCC", "latent_mcc");
      add("dictionary MCC", "dictionary_mcc");
      for (const char* name : kPursuits)
        add(fmt::format("latent MCC by {}", name).c_str(), fmt::format("{}_mcc", name));
    }
  return rows;
}

}  // namespace

LabExperiment architectures_experiment() {
  return {"architectures", "L2d, B6, B7, B8, B9",
          "encoders at the true number of active latents, and pursuits on what they learnt",
          architecture_cells, architecture_table};
}

}  // namespace megadict
