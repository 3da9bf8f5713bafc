// C2: the k largest codes, taken at the end or all along. 10.1: resampling of dead latents.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/philox.h"
#include "lab/cells.h"
#include "lab/experiments.h"
#include "lab/scores.h"

namespace megadict {

namespace {

constexpr uint64_t kBase = 20240926;
constexpr int64_t kKept[] = {1, 3, 5, 10};

// The k largest in absolute value of each sample stay, ties at the lower latent.
Tiles<float> keep_largest(const Tiles<float>& codes, int64_t k) {
  Tiles<float> out(codes.samples(), codes.features());
  std::vector<int64_t> order(static_cast<size_t>(codes.features()));
  for (int64_t i = 0; i < codes.samples(); ++i) {
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return std::abs(codes.at(i, a)) > std::abs(codes.at(i, b));
    });
    for (int64_t e = 0; e < std::min(k, codes.features()); ++e) {
      const int64_t j = order[static_cast<size_t>(e)];
      out.at(i, j) = codes.at(i, j);
    }
  }
  return out;
}

// (b): signed codes from 0, forward and gradient through the k largest of the moment.
Tiles<float> optimise_largest(const Learnt<float>& dictionary, const Tiles<float>& x, int64_t k) {
  constexpr int kSteps = 1000;
  constexpr double kRate = .9;
  Learnt<float> raw("codes", x.samples(), dictionary.cols);
  Tiles<float> codes(x.samples(), dictionary.cols), d_codes = codes;
  Tiles<float> x_hat(x.samples(), x.features()), d_x_hat = x_hat;
  Adam<float> adam;
  const auto read = [&] {
    std::copy(raw.value.begin(), raw.value.end(), codes.values().begin());
    return keep_largest(codes, k);
  };
  for (int step = 0; step < kSteps; ++step) {
    const Tiles<float> kept = read();
    multiply(dictionary.view(), nullptr, kept, x_hat);
    synthetic_loss(x, x_hat, kept, 0, d_x_hat);
    multiply_transposed(dictionary.view(), d_x_hat, d_codes);
    // At 0 nothing is larger than anything: the first k are let in, as a tie is broken.
    const bool first = step == 0;
    for (int64_t i = 0; i < x.samples(); ++i)
      for (int64_t j = 0; j < dictionary.cols; ++j)
        if (kept.at(i, j) == 0 && !(first && j < k)) d_codes.at(i, j) = 0;
    std::copy(d_codes.values().begin(), d_codes.values().end(), raw.gradient.begin());
    adam.step(raw, {.rate = kRate});
  }
  return read();
}

nlohmann::ordered_json topk_numbers(const LabProblem& problem, const MethodSettings& s) {
  const Learned plain = learn(problem, s);
  nlohmann::ordered_json json = scores_json(problem, s, plain);
  for (const int64_t k : kKept)
    for (const bool all_along : {false, true}) {
      Learned cut = plain;
      cut.codes = all_along ? optimise_largest(plain.dictionary, problem.x_test, k)
                            : keep_largest(plain.codes, k);
      const nlohmann::ordered_json scores = scores_json(problem, s, cut);
      const std::string name = fmt::format("{}{}", all_along ? "b" : "a", k);
      json[name + "_mse"] = scores["mse"];
      json[name + "_mcc"] = scores["latent_mcc"];
    }
  return json;
}

std::vector<LabCell> topk_cells(const LabScale& scale) {
  const LabData data = data_of(scale, kBase);
  std::vector<LabCell> cells;
  for (int64_t seed = 0; seed < seeds_of(scale, 2); ++seed) {
    MethodSettings codes = apply(scale, {.method = "codes",
                                         .latents = data.options.n_latents,
                                         .k = data.options.k,
                                         .lambda = .05,
                                         .rate = 3e-3,
                                         .steps = scale.quick ? 30000 : 100000,
                                         .seed = model_seed(data, seed)});
    cells.push_back({.group = "codes",
                     .seed = seed,
                     .cost_s = 5 + .2 * static_cast<double>(codes.steps) / 1000,
                     .settings = {{"data", data_json(data, seed)}, {"model", settings_json(codes)}},
                     .run = [=] { return topk_numbers(problem_of(data, seed), codes); }});
  }
  return cells;
}

std::vector<LabRow> topk_table(const LabResults& r) {
  struct Point {
    int64_t k;
    double a_mse, a_mcc, b_mse, b_mcc;
  };
  constexpr Point kReported[] = {{1, .155, .683, .293, .114},
                                 {3, .0315, .790, .169, .331},
                                 {5, .0060, .791, .069, .518},
                                 {10, 6.5e-4, .793, 4.5e-4, .756}};
  std::vector<LabRow> rows = {r.row("all codes: MSE", "codes", "mse", "6.5e-4"),
                              r.row("all codes: latent MCC", "codes", "latent_mcc", ".793")};
  for (const Point& p : kReported) {
    const auto add = [&](const char* how, const char* key, double reported,
                         std::optional<Band> band) {
      rows.push_back(r.row(fmt::format("k {}, {}", p.k, how), "codes",
                           fmt::format("{}{}_{}", key[0], p.k, key + 2),
                           fmt::format("{:.3g}", reported), band));
    };
    add("taken at the end: MSE", "a_mse", p.a_mse, Band{.7 * p.a_mse, 1.3 * p.a_mse});
    add("taken at the end: latent MCC", "a_mcc", p.a_mcc, Band{p.a_mcc - .1, p.a_mcc + .1});
    add("all along: MSE", "b_mse", p.b_mse, {});
    add("all along: latent MCC", "b_mcc", p.b_mcc, {});
    if (p.k == 10 || !r.has("codes")) continue;
    const bool ahead =
        r.mean("codes", fmt::format("a{}_mcc", p.k)) >
            r.mean("codes", fmt::format("b{}_mcc", p.k)) &&
        r.mean("codes", fmt::format("a{}_mse", p.k)) < r.mean("codes", fmt::format("b{}_mse", p.k));
    rows.push_back(derived_row(fmt::format("k {}: the end is better in both (1 = yes)", p.k),
                               ahead ? 1.0 : 0.0, "1", Band{1, 1}));
  }
  return rows;
}

// 10.1 on a small problem: half of 64 latents are dead at the start.
struct Revival {
  int64_t dead_before = 0, dead_after = 0;
  double mse = 0, best_correlation = 0;
};

std::vector<char> active_in(const Tiles<float>& codes) {
  std::vector<char> active(static_cast<size_t>(codes.features()), 0);
  for (int64_t i = 0; i < codes.samples(); ++i)
    for (int64_t j = 0; j < codes.features(); ++j)
      if (codes.at(i, j) > 0) active[static_cast<size_t>(j)] = 1;
  return active;
}

// A sample for each dead latent, likelier by squared loss: its direction becomes the latent's.
void resample(const LabProblem& problem, const SaePass<float>& pass, uint64_t seed, int64_t step,
              const std::vector<char>& active, SmallSae<float>& sae,
              const std::function<void(int64_t latent)>& reset_moments) {
  constexpr double kShare = .2;  // of the live encoder rows' mean norm
  const Tiles<float>& x = problem.x_train;
  std::vector<double> weight(static_cast<size_t>(x.samples()));
  double total = 0;
  for (int64_t i = 0; i < x.samples(); ++i) {
    double loss = 0;
    for (int64_t f = 0; f < x.features(); ++f)
      loss += std::pow(static_cast<double>(pass.x_hat.at(i, f)) - x.at(i, f), 2);
    total += weight[static_cast<size_t>(i)] = loss * loss;
  }
  Learnt<float>& encoder = *sae.parameters()[0];
  Learnt<float>& bias = *sae.parameters()[1];
  Learnt<float>& decoder = *sae.parameters()[2];
  double norms = 0, alive = 0;
  for (int64_t j = 0; j < encoder.rows; ++j) {
    if (active[static_cast<size_t>(j)] == 0) continue;
    double square = 0;
    for (int64_t f = 0; f < encoder.cols; ++f)
      square += std::pow(encoder.value[static_cast<size_t>(j * encoder.cols + f)], 2);
    norms += std::sqrt(square);
    ++alive;
  }
  const Rng rng{seed, Purpose::lab_draw, static_cast<uint64_t>(step)};
  for (int64_t j = 0; j < encoder.rows; ++j) {
    if (active[static_cast<size_t>(j)] != 0) continue;
    double left = rng.uniform(static_cast<uint64_t>(j)) * total;
    int64_t i = 0;
    while (i + 1 < x.samples() && (left -= weight[static_cast<size_t>(i)]) >= 0) ++i;
    double square = 0;
    for (int64_t f = 0; f < x.features(); ++f) square += std::pow(x.at(i, f), 2);
    for (int64_t f = 0; f < x.features(); ++f) {
      const double v = x.at(i, f) / std::sqrt(square);
      decoder.value[static_cast<size_t>(f * decoder.cols + j)] = static_cast<float>(v);
      encoder.value[static_cast<size_t>(j * encoder.cols + f)] =
          static_cast<float>(kShare * norms / alive * v);
    }
    bias.value[static_cast<size_t>(j)] = 0;
    reset_moments(j);
  }
}

double best_correlations(const LabProblem& problem, const Tiles<float>& codes) {
  double sum = 0;
  for (int64_t j = 0; j < problem.s_test.features(); ++j) {
    double best = 0;
    for (int64_t l = 0; l < codes.features(); ++l)
      best = std::max(best, std::abs(correlation(problem.s_test, j, codes, l)));
    sum += best;
  }
  return sum / static_cast<double>(problem.s_test.features());
}

Revival train_with_dead(const LabProblem& problem, const MethodSettings& s, bool resamples) {
  constexpr float kDeadBias = -2;
  constexpr int64_t kEvery = 1000;
  SmallSae<float> sae({.width = problem.options.width,
                       .latents = s.latents,
                       .encoder_bias = true,
                       .lambda = s.lambda,
                       .seed = s.seed});
  const std::vector<Learnt<float>*> parameters = sae.parameters();
  for (int64_t j = 0; j < s.latents; ++j)
    parameters[1]->value[static_cast<size_t>(j)] = j < s.latents / 2 ? kDeadBias : 0;
  std::vector<Adam<float>> adam(parameters.size());
  const auto reset_moments = [&](int64_t j) {
    adam[0].forget(j * parameters[0]->cols, parameters[0]->cols, 1);
    adam[1].forget(j, 1, 1);
    adam[2].forget(j, parameters[2]->rows, parameters[2]->cols);
  };
  SaePass<float> pass;
  Revival out;
  for (int64_t step = 0; step < s.steps; ++step) {
    sae.normalise();
    const SaeLoss loss = sae.gradients(problem.x_train, pass);
    if (!std::isfinite(loss.total))
      fail(ExitCode::diverged, fmt::format("the loss of step {} is not finite", step));
    if (resamples && step > 0 && step % kEvery == 0 && step <= 2 * kEvery) {
      const std::vector<char> active = active_in(pass.codes);
      resample(problem, pass, s.seed, step, active, sae, reset_moments);
      sae.gradients(problem.x_train, pass);
    }
    if (step == 0) {
      const std::vector<char> active = active_in(pass.codes);
      out.dead_before = std::count(active.begin(), active.end(), 0);
    }
    for (size_t i = 0; i < parameters.size(); ++i) adam[i].step(*parameters[i], {.rate = s.rate});
  }
  sae.normalise();
  sae.forward(problem.x_train, pass);
  const std::vector<char> active = active_in(pass.codes);
  out.dead_after = std::count(active.begin(), active.end(), 0);
  sae.forward(problem.x_test, pass);
  Tiles<float> unused = pass.x_hat;
  out.mse = synthetic_loss(problem.x_test, pass.x_hat, pass.codes, 0, unused).mse;
  out.best_correlation = best_correlations(problem, pass.codes);
  return out;
}

std::vector<LabCell> resampling_cells(const LabScale& scale) {
  LabData data = data_of(scale, kBase);
  if (scale.latents == 0) data.options.n_latents = 32;
  if (scale.width == 0) data.options.width = 16;
  if (scale.samples == 0) data.samples = 8192;
  std::vector<LabCell> cells;
  for (int64_t seed = 0; seed < seeds_of(scale, 3); ++seed)
    for (const bool resamples : {false, true}) {
      MethodSettings s = {.latents = 64,
                          .k = data.options.k,
                          .lambda = .05,
                          .steps = scale.steps > 0 ? scale.steps : 4000,
                          .seed = model_seed(data, seed)};
      cells.push_back({.group = resamples ? "resampled" : "left",
                       .seed = seed,
                       .cost_s = 10,
                       .settings = {{"data", data_json(data, seed)}, {"model", settings_json(s)}},
                       .run = [=] {
                         const Revival r = train_with_dead(problem_of(data, seed), s, resamples);
                         return nlohmann::ordered_json{{"dead_before", r.dead_before},
                                                       {"dead", r.dead_after},
                                                       {"mse", r.mse},
                                                       {"best_correlation", r.best_correlation}};
                       }});
    }
  return cells;
}

std::vector<LabRow> resampling_table(const LabResults& r) {
  const bool both = r.has("left") && r.has("resampled");
  const auto ratio = [&](const char* key) {
    return r.mean("left", key) / r.mean("resampled", key);
  };
  const auto gain = [&](const char* key) { return r.mean("resampled", key) - r.mean("left", key); };
  return {
      r.row("dead at the start, of 64", "left", "dead_before", "32", Band{32, 32}),
      r.row("dead at the end, left alone", "left", "dead", "32"),
      r.row("dead at the end, resampled", "resampled", "dead", "0", Band{0, 0}),
      r.row("test MSE, left alone", "left", "mse", ".00085"),
      r.row("test MSE, resampled", "resampled", "mse", ".00009"),
      derived_row("  how many times lower", both ? std::optional(ratio("mse")) : std::nullopt,
                  "9.4", Band{3}),
      r.row("best |correlation| of a true latent, left alone", "left", "best_correlation", ".517"),
      derived_row("  gained by resampling",
                  both ? std::optional(gain("best_correlation")) : std::nullopt, ".077",
                  Band{.03})};
}

}  // namespace

LabExperiment topk_codes_experiment() {
  return {"topk_codes", "C2", "the k largest codes, taken at the end or all along (Fig 15)",
          topk_cells, topk_table};
}

LabExperiment resampling_experiment() {
  return {"resampling", "10.1", "dead latents brought back by resampling", resampling_cells,
          resampling_table};
}

}  // namespace megadict
