// E1: the codes are known, an encoder is to give them. E2: the dictionary is known. E9: what no
// single linear layer can do, on E1's encoder.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "lab/cells.h"
#include "lab/dictionary_learning.h"
#include "lab/experiments.h"
#include "lab/scores.h"

namespace megadict {

namespace {

constexpr uint64_t kBase = 20240625;

// -mean over latents of the cosine, over samples, of true and given codes; adds its gradient.
double cosine_loss(const Tiles<float>& truth, const Tiles<float>& codes, Tiles<float>& d_codes) {
  constexpr double kFloor = 1e-8;
  const int64_t n = codes.features();
  double sum = 0;
  for (int64_t j = 0; j < n; ++j) {
    double product = 0, truths = 0, squares = 0;
    for (int64_t i = 0; i < codes.samples(); ++i) {
      const double s = truth.at(i, j), z = codes.at(i, j);
      product += s * z;
      truths += s * s;
      squares += z * z;
    }
    const double of_truth = std::max(std::sqrt(truths), kFloor);
    const double of_codes = std::max(std::sqrt(squares), kFloor);
    const double cosine = product / (of_truth * of_codes);
    sum += cosine;
    const double along = of_codes > kFloor ? cosine / (of_codes * of_codes) : 0;
    const double to_truth = 1 / (of_truth * of_codes);
    for (int64_t i = 0; i < codes.samples(); ++i)
      d_codes.at(i, j) = static_cast<float>((along * codes.at(i, j) - to_truth * truth.at(i, j)) /
                                            static_cast<double>(n));
  }
  return -sum / static_cast<double>(n);
}

SmallSae<float> train_on_codes(const LabProblem& problem, const MethodSettings& s,
                               nlohmann::ordered_json& curve) {
  SmallSae<float> sae({.width = problem.options.width,
                       .latents = problem.options.n_latents,
                       .hidden = s.hidden,
                       .bias = true,
                       .seed = s.seed});
  sae.fix_decoder(problem.dictionary.value);
  const std::vector<Learnt<float>*> parameters = sae.parameters();
  std::vector<Adam<float>> adam(parameters.size());
  SaePass<float> pass, of_test;
  for (int64_t step = 0; step < s.steps; ++step) {
    sae.forward(problem.x_train, pass);
    pass.d_codes = Tiles<float>(pass.codes.samples(), pass.codes.features());
    const double loss = cosine_loss(problem.s_train, pass.codes, pass.d_codes);
    if (!std::isfinite(loss))
      fail(ExitCode::diverged, fmt::format("the loss of step {} is not finite", step),
           "a smaller --rate");
    if (step % s.log_every == 0) {
      sae.forward(problem.x_test, of_test);
      curve["step"].push_back(step);
      curve["score"].push_back(known_codes_score(problem.s_test, of_test.codes));
    }
    sae.encoder_gradients(problem.x_train, pass);
    for (size_t i = 0; i < parameters.size(); ++i) adam[i].step(*parameters[i], {.rate = s.rate});
  }
  return sae;
}

// The one-hot codes and the sums of two, encoded from D s: the largest error after the best
// positive scale of each latent.
double worst_recovery(const SmallSae<float>& sae, const LabProblem& problem) {
  const int64_t n = problem.options.n_latents;
  std::vector<std::pair<int64_t, int64_t>> pairs;
  for (int64_t a = 0; a < n; ++a)
    for (int64_t b = a; b < n; ++b) pairs.emplace_back(a, b);
  const auto count = static_cast<int64_t>(pairs.size());
  const int64_t padded = (count + kLane - 1) / kLane * kLane;
  Tiles<float> s(padded, n), x(padded, problem.options.width);
  for (int64_t i = 0; i < count; ++i) {
    const auto [a, b] = pairs[static_cast<size_t>(i)];
    s.at(i, a) = s.at(i, b) = 1;
  }
  multiply(problem.dictionary.view(), nullptr, s, x);
  SaePass<float> pass;
  sae.forward(x, pass);
  double worst = 0;
  for (int64_t j = 0; j < n; ++j) {
    double product = 0, squares = 0;
    for (int64_t i = 0; i < count; ++i) {
      product += static_cast<double>(s.at(i, j)) * pass.codes.at(i, j);
      squares += static_cast<double>(pass.codes.at(i, j)) * pass.codes.at(i, j);
    }
    const double scale = squares > 0 ? std::max(0.0, product / squares) : 0;
    for (int64_t i = 0; i < count; ++i)
      worst = std::max(worst, std::abs(scale * pass.codes.at(i, j) - s.at(i, j)));
  }
  return worst;
}

// E9 of a linear encoder: P = W_enc D maps codes to pre-activations.
nlohmann::ordered_json certificate(const SmallSae<float>& sae, const LabProblem& problem) {
  constexpr double kZero = 1e-5;  // of the largest singular value
  const at::Tensor w = columns_of(sae.encoder().weight).t().to(at::kDouble);
  const at::Tensor p = at::mm(w, columns_of(problem.dictionary).t().to(at::kDouble));
  const at::Tensor sigma = std::get<1>(at::linalg_svd(p, false)).contiguous();
  const auto* values = sigma.const_data_ptr<double>();
  int64_t rank = 0;
  while (rank < sigma.numel() && values[rank] > kZero * values[0]) ++rank;
  Tiles<float> codes;
  run_fista(problem.dictionary, problem.x_test, 0.01, 1000, codes);
  return {{"rank", rank},
          {"worst_recovery", worst_recovery(sae, problem)},
          {"fista_mcc", latent_mcc(problem.s_test, codes)}};
}

void add_known_codes(std::vector<LabCell>& cells, const LabScale& scale, const std::string& group,
                     std::vector<int64_t> hidden, int64_t steps, int64_t count, double cost_s) {
  const LabData data = data_of(scale, kBase);
  for (int64_t seed = 0; seed < count; ++seed) {
    MethodSettings s = apply(scale, {.latents = data.options.n_latents,
                                     .hidden = hidden,
                                     .rate = 1e-3,
                                     .steps = steps,
                                     .bias = true,
                                     .seed = model_seed(data, seed),
                                     .log_every = 100});
    cells.push_back({.group = group,
                     .seed = seed,
                     .cost_s = cost_s,
                     .settings = {{"data", data_json(data, seed)}, {"model", settings_json(s)}},
                     .run = [=] {
                       const LabProblem problem = problem_of(data, seed);
                       nlohmann::ordered_json curve, numbers;
                       const SmallSae<float> sae = train_on_codes(problem, s, curve);
                       SaePass<float> pass;
                       sae.forward(problem.x_test, pass);
                       numbers["score"] = known_codes_score(problem.s_test, pass.codes);
                       if (s.hidden.empty()) numbers.update(certificate(sae, problem));
                       numbers["curve"] = curve;
                       return numbers;
                     }});
  }
}

std::vector<LabCell> known_codes_cells(const LabScale& scale) {
  const int64_t seeds = seeds_of(scale, scale.quick ? 3 : 5), few = scale.quick ? 1 : seeds;
  std::vector<LabCell> cells;
  add_known_codes(cells, scale, "sae", {}, 20000, seeds, 3);
  add_known_codes(cells, scale, "mlp32", {32}, 20000, seeds, 15);
  add_known_codes(cells, scale, "mlp256", {256}, scale.quick ? 10000 : 20000, few,
                  scale.quick ? 60 : 120);
  add_known_codes(cells, scale, "mlp1024", {1024}, scale.quick ? 2000 : 20000,
                  scale.full ? seeds : 1, scale.quick ? 50 : 500);
  return cells;
}

std::vector<LabRow> known_codes_table(const LabResults& r) {
  const bool both = r.has("sae") && r.has("mlp1024");
  std::vector<LabRow> rows = {
      r.row("linear encoder, score (D3)", "sae", "score", ".862 +- .025", Band{.84, .90}),
      r.row("MLP 32", "mlp32", "score", ".901 +- .047", Band{.72, .95}),
      r.row("MLP 256", "mlp256", "score", ".900 +- .028", Band{.78, .96}),
      r.row("MLP 1024", "mlp1024", "score", ".950 +- .001", Band{.93}),
      derived_row(
          "MLP 1024 above the linear encoder by",
          both ? std::optional(r.mean("mlp1024", "score") - r.mean("sae", "score")) : std::nullopt,
          ".088", Band{.04}),
      r.row("E9: rank of W_enc D (d = 8 of n = 16)", "sae", "rank", "", Band{0, 8}),
      r.row("E9: worst error on one-hot and pairs", "sae", "worst_recovery", "", Band{1e-6}),
      r.row("E9: FISTA with the true D, latent MCC", "sae", "fista_mcc", "", Band{.98})};
  return rows;
}

std::vector<LabCell> known_dictionary_cells(const LabScale& scale) {
  const int64_t seeds = seeds_of(scale, scale.quick ? 3 : 5), few = scale.quick ? 1 : seeds;
  const LabData data = data_of(scale, kBase);
  const MethodSettings sae = apply(scale, {.latents = data.options.n_latents,
                                           .k = data.options.k,
                                           .steps = 20000,
                                           .known_dictionary = true,
                                           .log_every = 250});
  MethodSettings mlp32 = sae, mlp256 = sae, codes = sae;
  mlp32.hidden = {32};
  mlp256.hidden = {256};
  if (scale.quick && scale.steps == 0) mlp256.steps = 10000;
  codes.method = "true_dictionary";
  codes.code_rate = 1e-3;
  codes.code_steps = sae.steps;
  std::vector<LabCell> cells;
  add_cells(cells, "sae", data, sae, seeds, 4);
  add_cells(cells, "mlp32", data, mlp32, seeds, 15);
  add_cells(cells, "mlp256", data, mlp256, few, scale.quick ? 70 : 130);
  add_cells(cells, "ito", data, codes, seeds, 3);
  MethodSettings warm = codes;
  warm.method = "sae_then_warm_codes";
  add_cells(cells, "ito_warm", data, warm, seeds, 7);
  return cells;
}

std::vector<LabRow> known_dictionary_table(const LabResults& r) {
  const bool both = r.has("sae") && r.has("ito");
  std::vector<LabRow> rows = {
      r.row("linear encoder, latent MCC", "sae", "latent_mcc", ".609 +- .038", Band{.58, .80}),
      r.row("MLP 32", "mlp32", "latent_mcc", ".780 +- .063", Band{.68, .90}),
      r.row("MLP 256", "mlp256", "latent_mcc", ".818 +- .113", Band{.70, .96}),
      r.row("codes optimised for D (C3)", "ito", "latent_mcc", ".967", Band{.95}),
      derived_row("optimised codes above the linear encoder by",
                  both ? std::optional(r.mean("ito", "latent_mcc") - r.mean("sae", "latent_mcc"))
                       : std::nullopt,
                  ".358", Band{.15}),
      r.row("the same, begun at the linear encoder's codes", "ito_warm", "latent_mcc", "")};
  for (const auto& [step, reported] :
       {std::pair(500, ""), std::pair(2500, ""), std::pair(5000, ".739"), std::pair(10000, ".942"),
        std::pair(15000, ".962")})
    for (const char* group : {"ito", "ito_warm"})
      rows.push_back(derived_row(
          fmt::format("  after {} steps, {}", step, group == std::string("ito") ? "cold" : "warm"),
          r.at_step(group, "code_curve", step, "latent_mcc"),
          group == std::string("ito") ? reported : ""));
  return rows;
}

}  // namespace

LabExperiment known_codes_experiment() {
  return {"known_codes", "E1, E9", "an encoder learns codes that are known (Fig 2; Theorem 1)",
          known_codes_cells, known_codes_table};
}

LabExperiment known_dictionary_experiment() {
  return {"known_dictionary", "E2", "an encoder learns the codes of a known dictionary (Fig 3)",
          known_dictionary_cells, known_dictionary_table};
}

}  // namespace megadict
