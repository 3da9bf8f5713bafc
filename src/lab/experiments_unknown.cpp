// E3: neither codes nor dictionary are known. C4 to C7: codes of the true dictionary by pursuits.
#include <fmt/format.h>

#include <cmath>

#include "lab/cells.h"
#include "lab/dictionary_learning.h"
#include "lab/experiments.h"
#include "lab/lca.h"
#include "lab/scores.h"

namespace megadict {

namespace {

constexpr uint64_t kBase = 20240926;

struct Row {
  const char* group;
  MethodSettings settings;
  bool few;       // one seed where quick
  double cost_s;  // at 40,000 steps
};

std::vector<Row> unknown_rows(const LabData& data, bool quick) {
  const int64_t n = data.options.n_latents, k = data.options.k;
  const MethodSettings sae = {.latents = n, .k = k, .steps = 40000, .log_every = 500};
  std::vector<Row> rows = {
      {"sae", sae, false, 8},      {"ito", sae, false, 10},   {"ito_warm", sae, false, 10},
      {"codes", sae, false, 10},   {"mlp32", sae, false, 40}, {"mlp256", sae, true, 260},
      {"dl_fista", sae, false, 1}, {"kmeans", sae, false, 1}, {"topk", sae, false, 8}};
  for (Row& row : rows) {
    const std::string group = row.group;
    if (group == "codes" || group == "dl_fista" || group == "kmeans" || group == "topk")
      row.settings.method = group;
    if (group == "ito") row.settings.method = "sae_then_codes";
    if (group == "ito_warm") row.settings.method = "sae_then_warm_codes";
    if (group == "mlp32") row.settings.hidden = {32};
    if (group == "mlp256") row.settings.hidden = {256};
    if (group == "dl_fista") row.settings.lambda = .05;
    if (group == "topk") {
      row.settings.rate = 3e-3;
      row.settings.steps = 10000;
    }
    if (quick && (group == "codes" || group == "mlp32")) row.settings.steps = 20000;
    if (quick && group == "mlp256") row.settings.steps = 20000;
    row.cost_s *= static_cast<double>(row.settings.steps) / 40000;
  }
  return rows;
}

// B11: batches of 128 samples, so that 8 steps see each once.
std::vector<Row> lca_rows(const LabData& data, bool quick) {
  MethodSettings held = {.method = "dl_lca",
                         .latents = data.options.n_latents,
                         .k = data.options.k,
                         .lambda = .1,
                         .rate = 3e-3,
                         .steps = quick ? 500 : 4000,
                         .inner = 300};
  MethodSettings loop = held;
  loop.method = "dl_lca_loop";
  loop.inner = 25;  // through some hundreds the gradient may grow until fp32 cannot hold it
  return {{"dl_lca", held, true, quick ? 3.0 : 25}, {"dl_lca_loop", loop, true, quick ? 6.0 : 50}};
}

std::vector<LabCell> unknown_cells(const LabScale& scale) {
  const int64_t seeds = seeds_of(scale, scale.quick ? 3 : 5);
  const LabData data = data_of(scale, kBase);
  std::vector<LabCell> cells;
  for (const Row& row : unknown_rows(data, scale.quick)) {
    MethodSettings settings = apply(scale, row.settings);
    settings.lambda = row.settings.method == "dl_fista" ? row.settings.lambda : settings.lambda;
    add_cells(cells, row.group, data, settings, scale.quick && row.few ? 1 : seeds, row.cost_s);
  }
  for (const Row& row : lca_rows(data, scale.quick)) {
    MethodSettings settings = apply(scale, row.settings);
    settings.lambda = row.settings.lambda;
    add_cells(cells, row.group, data, settings, scale.quick ? 1 : seeds, row.cost_s);
  }
  return cells;
}

// Whether the dictionary of gradient sparse coding is worse than at its start between steps 1,000
// and 6,000; of every run.
double share_of_dips(const LabResults& r) {
  double dips = 0, runs = 0;
  for (const LabResult& result : r.all()) {
    if (result.group != "codes" || !result.numbers.contains("curve")) continue;
    const auto& curve = result.numbers["curve"];
    bool dip = false;
    for (size_t i = 0; i < curve["step"].size(); ++i) {
      const double step = curve["step"][i];
      dip |= step >= 1000 && step <= 6000 &&
             curve["dictionary_mcc"][i].get<double>() < curve["dictionary_mcc"][0].get<double>();
    }
    dips += dip ? 1 : 0;
    ++runs;
  }
  return runs > 0 ? dips / runs : std::nan("");
}

std::vector<LabRow> unknown_table(const LabResults& r) {
  const auto difference = [&](const char* a, const char* b) {
    return r.has(a) && r.has(b) ? std::optional(r.mean(a, "latent_mcc") - r.mean(b, "latent_mcc"))
                                : std::nullopt;
  };
  return {
      r.row("SAE, latent MCC", "sae", "latent_mcc", ".566 +- .011", Band{.54, .65}),
      r.row("SAE, dictionary MCC", "sae", "dictionary_mcc", ".745 +- .015", Band{.69, .79}),
      r.row("SAE, dictionary cosine", "sae", "dictionary_cosine", ""),
      r.row("SAE, test loss", "sae", "loss", ".00210", Band{.0019, .0023}),
      r.row("SAE's D with optimised codes", "ito", "latent_mcc", ".583 +- .020"),
      derived_row("  its distance from the SAE", difference("ito", "sae"), ".017", Band{-.03, .03}),
      r.row("  the same, begun at the SAE's codes", "ito_warm", "latent_mcc", ""),
      r.row("    its test loss", "ito_warm", "loss", ""),
      r.row("    from the cold start", "ito", "loss", ""),
      derived_row("    warm after 500 steps", r.at_step("ito_warm", "code_curve", 500, "loss"), ""),
      derived_row("    cold after 500 steps", r.at_step("ito", "code_curve", 500, "loss"), ""),
      r.row("gradient sparse coding, latent MCC", "codes", "latent_mcc", ".691 +- .051",
            Band{.62, .76}),
      r.row("gradient sparse coding, dictionary MCC", "codes", "dictionary_mcc", ".837 +- .038",
            Band{.76, .88}),
      r.row("gradient sparse coding, test loss", "codes", "loss", ".00216", Band{.00184, .00248}),
      derived_row("  above the SAE by", difference("codes", "sae"), ".125", Band{.05}),
      derived_row("  runs with an early dip of the dictionary", share_of_dips(r), "1", Band{1, 1}),
      r.row("MLP 32, latent MCC", "mlp32", "latent_mcc", ".623 +- .070", Band{.55, .70}),
      r.row("MLP 32, dictionary MCC", "mlp32", "dictionary_mcc", ".791 +- .045", Band{.75, .84}),
      r.row("MLP 32, test loss", "mlp32", "loss", ".00197", Band{.00167, .00227}),
      r.row("MLP 256, latent MCC", "mlp256", "latent_mcc", ".643 +- .072", Band{.57, .75}),
      r.row("MLP 256, dictionary MCC", "mlp256", "dictionary_mcc", ".851 +- .038", Band{.79, .90}),
      r.row("MLP 256, test loss", "mlp256", "loss", ".00226", Band{.00192, .00260}),
      r.row("DL-FISTA, latent MCC (C8b)", "dl_fista", "latent_mcc", "", Band{.85}),
      r.row("DL-FISTA, dictionary MCC", "dl_fista", "dictionary_mcc", "", Band{.95}),
      r.row("DL-LCA, latent MCC (B11)", "dl_lca", "latent_mcc", ""),
      r.row("DL-LCA, dictionary MCC", "dl_lca", "dictionary_mcc", ""),
      r.row("DL-LCA through 25 steps, latent MCC", "dl_lca_loop", "latent_mcc", ""),
      r.row("DL-LCA through 25 steps, dictionary MCC", "dl_lca_loop", "dictionary_mcc", ""),
      r.row("TopK, latent MCC (B6)", "topk", "latent_mcc", "", Band{.58, .75}),
      r.row("TopK, dictionary MCC", "topk", "dictionary_mcc", ""),
      r.row("one-hot codes, latent MCC (C9)", "kmeans", "latent_mcc", ""),
      r.row("one-hot codes, dictionary MCC", "kmeans", "dictionary_mcc", "")};
}

nlohmann::ordered_json pursuit_numbers(const LabProblem& problem, int64_t k) {
  const auto score = [&](const Tiles<float>& codes) { return latent_mcc(problem.s_test, codes); };
  nlohmann::ordered_json json;
  for (const char* name : {"mp", "gp", "omp"})
    for (const int64_t rounds : {k, 2 * k})
      json[fmt::format("{}_{}k", name, rounds / k)] =
          score(pursuit_codes(name, problem.dictionary, problem.x_test, rounds, 0));
  for (const double lambda : {.001, .01, .05, .1}) {
    Tiles<float> codes;
    run_fista(problem.dictionary, problem.x_test, lambda, 1000, codes);
    json[fmt::format("fista_{}", lambda)] = score(codes);
    json[fmt::format("lars_{}", lambda)] =
        score(pursuit_codes("lars", problem.dictionary, problem.x_test, k, lambda));
  }
  const double mp = json["mp_1k"], gp = json["gp_1k"], omp = json["omp_1k"];
  json["in_order"] = mp < gp && gp < omp && omp < json["fista_0.01"].get<double>() ? 1 : 0;
  return json;
}

// LCA's codes after 300 steps at most, and by what share its lasso is above FISTA's.
nlohmann::ordered_json lca_numbers(const LabProblem& problem) {
  nlohmann::ordered_json json;
  bool by_means = true, by_sums = true;
  for (const double lambda : {.01, .05, .1}) {
    Tiles<float> best, codes;
    run_fista(problem.dictionary, problem.x_test, lambda, 1000, best);
    const double least = lasso_objective(problem.dictionary, problem.x_test, lambda, best);
    for (const bool sum_j : {false, true}) {
      run_lca(problem.dictionary, problem.x_test, lambda, {.sum_j = sum_j}, codes);
      const std::string name = fmt::format("lca{}_{}", sum_j ? "_sum" : "", lambda);
      json[name] = latent_mcc(problem.s_test, codes);
      const double above =
          lasso_objective(problem.dictionary, problem.x_test, lambda, codes) / least - 1;
      json[name + "_above"] = above;
      (sum_j ? by_sums : by_means) &= above <= (sum_j ? .005 : .02);
    }
  }
  json["near"] = by_means ? 1 : 0;
  json["near_sum"] = by_sums ? 1 : 0;
  return json;
}

std::vector<LabCell> pursuit_cells(const LabScale& scale) {
  const LabData data = data_of(scale, kBase);
  std::vector<LabCell> cells;
  for (int64_t seed = 0; seed < seeds_of(scale, 6); ++seed) {
    cells.push_back(
        {.group = "pursuits",
         .seed = seed,
         .cost_s = 1,
         .settings = {{"data", data_json(data, seed)}},
         .run = [=] { return pursuit_numbers(problem_of(data, seed), data.options.k); }});
    cells.push_back({.group = "lca",
                     .seed = seed,
                     .cost_s = 1,
                     .settings = {{"data", data_json(data, seed)}, {"lca_iterations", 300}},
                     .run = [=] { return lca_numbers(problem_of(data, seed)); }});
  }
  return cells;
}

std::vector<LabRow> pursuit_table(const LabResults& r) {
  const char* g = "pursuits";
  return {r.row("matching pursuit, K rounds (C4)", g, "mp_1k", "", Band{.85, .93}),
          r.row("matching pursuit, 2K rounds", g, "mp_2k", ""),
          r.row("gradient pursuit, K rounds (C5)", g, "gp_1k", "", Band{.86, .94}),
          r.row("gradient pursuit, 2K rounds", g, "gp_2k", ""),
          r.row("OMP, K rounds (C6)", g, "omp_1k", "", Band{.88, .96}),
          r.row("OMP, 2K rounds", g, "omp_2k", ""),
          r.row("FISTA, lambda .001 (C7)", g, "fista_0.001", "", Band{.982, 1}),
          r.row("FISTA, lambda .01", g, "fista_0.01", "", Band{.98, 1}),
          r.row("FISTA, lambda .05", g, "fista_0.05", "", Band{.966, .994}),
          r.row("FISTA, lambda .1", g, "fista_0.1", "", Band{.952, .983}),
          r.row("LARS, lambda .05", g, "lars_0.05", "", Band{.966, .994}),
          r.row("LCA, lambda .01 (B11)", "lca", "lca_0.01", ""),
          r.row("LCA, lambda .05", "lca", "lca_0.05", ""),
          r.row("LCA, lambda .1", "lca", "lca_0.1", ""),
          r.row("LCA's lasso above FISTA's, lambda .01", "lca", "lca_0.01_above", "<= .013",
                Band{-1e-4, .02}),
          r.row("  lambda .1", "lca", "lca_0.1_above", "<= .013", Band{-1e-4, .02}),
          r.row("  sum-J, lambda .01", "lca", "lca_sum_0.01_above", "<= .003", Band{-1e-4, .005}),
          r.row("  sum-J, lambda .1", "lca", "lca_sum_0.1_above", "<= .003", Band{-1e-4, .005}),
          r.row("runs with LCA at most 2 % above", "lca", "near", "1", Band{1, 1}),
          r.row("  sum-J, at most .5 %", "lca", "near_sum", "1", Band{1, 1}),
          r.row("runs with MP < GP < OMP < FISTA(.01)", g, "in_order", "1", Band{1, 1})};
}

}  // namespace

LabExperiment unknown_experiment() {
  return {"unknown", "E3, C8b, C9, B6, B11", "neither codes nor dictionary known (Fig 4)",
          unknown_cells, unknown_table};
}

LabExperiment pursuits_experiment() {
  return {"pursuits", "C4, C5, C6, C7, B11",
          "codes of the true dictionary by pursuits and the lasso", pursuit_cells, pursuit_table};
}

}  // namespace megadict
