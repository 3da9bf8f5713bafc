// E5: error, sparsity and recovery over lambda, and over k of TopK.
#include <fmt/format.h>

#include "lab/cells.h"
#include "lab/curves.h"
#include "lab/experiments.h"

namespace megadict {

namespace {

constexpr uint64_t kBase = 20240926;
constexpr double kLambdas[] = {.001, .005, .01, .05, .1, .5, 1, 2, 5};
constexpr int64_t kTopK[] = {1, 2, 3, 4, 5, 8, 10, 15};

struct Reported {
  double lambda;
  struct {
    double mse, l0, mcc;
  } sae, mlp, codes;
};
constexpr Reported kReported[] = {
    {.001, {1.0e-4, .837, .538}, {4.6e-5, .515, .550}, {2.5e-4, .523, .739}},
    {.01, {1.4e-5, .509, .595}, {1.3e-4, .490, .607}, {3.2e-4, .525, .730}},
    {.05, {2.5e-4, .481, .597}, {5.4e-4, .454, .606}, {6.6e-4, .500, .751}},
    {.1, {.00101, .460, .617}, {.00141, .445, .615}, {.00128, .474, .728}},
    {.5, {.0173, .326, .593}, {.0146, .287, .701}, {.0119, .343, .836}},
    {1, {.0483, .230, .559}, {.0396, .202, .680}, {.0378, .275, .722}},
    {2, {.125, .118, .414}, {.110, .126, .491}, {.0978, .173, .651}},
    {5, {.311, .024, .208}, {.345, .010, .065}, {.273, .042, .446}},
};

std::string group_of(const char* method, double lambda) {
  return fmt::format("{}_lambda{:g}", method, lambda);
}

std::vector<LabCell> frontier_cells(const LabScale& scale) {
  if (!scale.data_path.empty()) return row_frontier_cells(scale);
  const LabData data = data_of(scale, kBase);
  const int64_t n = data.options.n_latents, seeds = seeds_of(scale);
  std::vector<LabCell> cells;
  const MethodSettings sae = {
      .latents = n, .k = data.options.k, .rate = 3e-3, .steps = scale.quick ? 20000 : 100000};
  const double thousands = static_cast<double>(sae.steps) / 1000;
  for (const double lambda : kLambdas) {
    if (scale.quick && lambda != .05 && lambda != .5 && lambda != 2) continue;
    MethodSettings s = apply(scale, sae), mlp, codes;
    s.lambda = lambda;
    mlp = codes = s;
    mlp.hidden = {32};
    codes.method = "codes";
    const int64_t count = scale.quick ? 1 : seeds;
    add_cells(cells, group_of("sae", lambda), data, s, count, .2 * thousands);
    add_cells(cells, group_of("codes", lambda), data, codes, count, .22 * thousands);
    if (!scale.quick) add_cells(cells, group_of("mlp32", lambda), data, mlp, count, thousands);
  }
  for (const int64_t k : kTopK) {
    if (k > n || (scale.quick && k != 1 && k != 3 && k != 8)) continue;
    MethodSettings s = apply(scale, sae);
    s.method = "topk";
    s.k = k;
    s.steps = scale.steps > 0 ? scale.steps : 10000;
    add_cells(cells, fmt::format("topk{}", k), data, s, seeds, 3);
  }
  return cells;
}

void add_lambda(std::vector<LabRow>& rows, const LabResults& r, const Reported& of,
                const char* method, double mse, double l0, double mcc) {
  const std::string group = group_of(method, of.lambda);
  if (!r.has(group)) return;
  const double factor = of.lambda >= .05 ? 1.5 : 5;
  const auto what = [&](const char* number) {
    return fmt::format("lambda {:g}, {}: {}", of.lambda, method, number);
  };
  const bool by_size = std::string_view(method) == "codes";
  rows.push_back(r.row(what("MSE"), group, "mse", fmt::format("{:.3g}", mse),
                       Band{mse / factor, mse * factor}));
  rows.push_back(r.row(what("share of active codes"), group, by_size ? "l0_1e-4" : "l0",
                       fmt::format("{:.3f}", l0),
                       of.lambda >= .05 ? std::optional(Band{l0 - .05, l0 + .05}) : std::nullopt));
  rows.push_back(r.row(what("latent MCC"), group, "latent_mcc", fmt::format("{:.3f}", mcc),
                       Band{mcc - .10, mcc + .10}));
}

// log MSE of a method over `axis`.
Curve error_over(const LabResults& r, const char* method, const std::string& axis) {
  std::vector<std::string> groups;
  for (const double lambda : kLambdas) groups.push_back(group_of(method, lambda));
  return log_curve_of(r, groups, axis, "mse");
}

// Of sparse coding's points within the SAE's range, the share where its error is the smaller.
std::optional<double> share_ahead(const LabResults& r, const char* axis) {
  const Curve sae = error_over(r, "sae", axis);
  double ahead = 0, compared = 0;
  for (const auto& [where, error] : error_over(r, "codes", axis)) {
    const std::optional<double> other = value_at(sae, where);
    if (!other) continue;
    ahead += error < *other ? 1 : 0;
    ++compared;
  }
  return compared > 0 ? std::optional(ahead / compared) : std::nullopt;
}

std::optional<double> share_highest(const LabResults& r) {
  double highest = 0, compared = 0;
  for (const double lambda : kLambdas) {
    if (!r.has(group_of("codes", lambda))) continue;
    const double codes = r.mean(group_of("codes", lambda), "latent_mcc");
    bool best = true;
    for (const char* other : {"sae", "mlp32"})
      if (r.has(group_of(other, lambda)))
        best &= codes > r.mean(group_of(other, lambda), "latent_mcc");
    highest += best ? 1 : 0;
    ++compared;
  }
  return compared > 0 ? std::optional(highest / compared) : std::nullopt;
}

void add_topk(std::vector<LabRow>& rows, const LabResults& r) {
  const auto add = [&](int64_t k, const char* mse, Band mse_band, const char* mcc, Band mcc_band) {
    const std::string group = fmt::format("topk{}", k);
    rows.push_back(r.row(fmt::format("TopK k {}: MSE", k), group, "mse", mse, mse_band));
    rows.push_back(
        r.row(fmt::format("TopK k {}: latent MCC", k), group, "latent_mcc", mcc, mcc_band));
  };
  add(1, ".127", {.10, .15}, ".326", {.25, .42});
  add(3, ".0279", {.017, .032}, ".637", {.58, .75});
  add(8, "4e-7", {0, 1e-4}, ".507", {.44, .54});
  int64_t best = 0;
  double highest = -1;
  for (const int64_t k : kTopK) {
    const std::string group = fmt::format("topk{}", k);
    if (!r.has(group) || r.mean(group, "latent_mcc") <= highest) continue;
    highest = r.mean(group, "latent_mcc");
    best = k;
  }
  rows.push_back(derived_row("TopK: the k of the highest MCC (3 are active)",
                             best > 0 ? std::optional(static_cast<double>(best)) : std::nullopt,
                             "3", Band{3, 3}));
}

std::vector<LabRow> frontier_table(const LabResults& r) {
  if (std::vector<LabRow> of_rows = row_frontier_table(r); !of_rows.empty()) return of_rows;
  std::vector<LabRow> rows;
  for (const Reported& of : kReported) {
    add_lambda(rows, r, of, "sae", of.sae.mse, of.sae.l0, of.sae.mcc);
    add_lambda(rows, r, of, "mlp32", of.mlp.mse, of.mlp.l0, of.mlp.mcc);
    add_lambda(rows, r, of, "codes", of.codes.mse, of.codes.l0, of.codes.mcc);
  }
  rows.push_back(derived_row("share of lambdas where sparse coding has the highest MCC",
                             share_highest(r), "1", Band{1, 1}));
  for (const char* axis : {"l0", "l0_1e-5", "l0_1e-4", "l0_1e-3", "l1"})
    rows.push_back(claim_row(
        fmt::format("claim: its error is below the SAE's at equal {}; share of points", axis),
        share_ahead(r, axis), "1", {1, 1}));
  add_topk(rows, r);
  return rows;
}

}  // namespace

LabExperiment frontier_experiment() {
  return {"frontier",
          "E5, B6, D9",
          "error, active codes and recovery over lambda and k (Fig 6)",
          frontier_cells,
          frontier_table,
          nullptr,
          LabRows::where_given};
}

}  // namespace megadict
