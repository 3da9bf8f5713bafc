// E4: where sparse coding is ahead of encoders, over latents, width and active latents.
#include <fmt/format.h>

#include "lab/cells.h"
#include "lab/experiments.h"

namespace megadict {

namespace {

constexpr uint64_t kBase = 20240927;

struct Cell {
  int64_t width, latents, k;
  double sae, mlp, codes, sae_dictionary, codes_dictionary;  // reported; 0 = not
};

// Of K = 3. The others of the grid have no reported numbers.
constexpr Cell kReported[] = {
    {8, 16, 3, .638, .593, .733, .746, .878},   {8, 64, 3, .256, .285, .422, .801, .842},
    {8, 128, 3, .213, .246, .328, .836, .871},  {16, 16, 3, .958, .871, .974, .969, 1.00},
    {16, 32, 3, .577, .533, .928, .684, .973},  {16, 128, 3, .286, .271, .471, .661, .756},
    {32, 16, 3, 1.00, .918, .941, 1.00, 1.00},  {32, 32, 3, .999, .909, .946, 1.00, 1.00},
    {32, 128, 3, .420, .316, .869, .606, .945},
};
constexpr int64_t kWidths[] = {8, 16, 32}, kLatents[] = {16, 32, 64, 128}, kActive[] = {3, 9, 15};

std::string group_of(int64_t width, int64_t latents, int64_t k, std::string_view method) {
  return fmt::format("M{}_N{}_K{}_{}", width, latents, k, method);
}

LabData data_of_cell(const LabScale& scale, int64_t width, int64_t latents, int64_t k) {
  LabData data = data_of(scale, kBase);
  data.options.width = width;
  data.options.n_latents = latents;
  data.options.k = k;
  return data;
}

// `size`: latents times width over the smallest of the grid.
void add_cell(std::vector<LabCell>& cells, const LabScale& scale, const LabData& data, bool trains,
              int64_t seeds) {
  const SynthOptions& o = data.options;
  const auto size = static_cast<double>(o.n_latents * o.width) / 128;
  const auto add = [&](const char* name, const MethodSettings& settings, double cost_s) {
    add_cells(cells, group_of(o.width, o.n_latents, o.k, name), data, settings, seeds, cost_s);
  };
  const MethodSettings fista = {.method = "dl_fista",
                                .latents = o.n_latents,
                                .k = o.k,
                                .lambda = .05,
                                .rounds = 60,
                                .inner = 25};
  add("dl_fista", fista, .1 * size);
  if (!trains) return;
  MethodSettings sae = {.latents = o.n_latents, .k = o.k, .steps = o.k == 15 ? 25000 : 50000};
  if (scale.steps > 0) sae.steps = scale.steps;
  MethodSettings mlp = sae, codes = sae;
  mlp.hidden = {32};
  codes.method = "codes";
  codes.rate = 3e-3;
  const double thousands = static_cast<double>(sae.steps) / 1000;
  add("sae", sae, .12 * thousands * size);
  add("codes", codes, .2 * thousands * size);
  if (!scale.quick) add("mlp32", mlp, .4 * thousands * size);
}

std::vector<LabCell> regimes_cells(const LabScale& scale) {
  std::vector<LabCell> cells;
  const int64_t seeds = seeds_of(scale, scale.full ? 3 : 1);
  for (const int64_t k : kActive)
    for (const int64_t width : kWidths)
      for (const int64_t latents : kLatents) {
        const bool asked = (scale.k == 0 || scale.k == k) &&
                           (scale.width == 0 || scale.width == width) &&
                           (scale.latents == 0 || scale.latents == latents);
        const bool example = width == 16 && latents == 32;
        if (!asked || (scale.quick && k != 3)) continue;
        if (k == 15 && !scale.full && scale.k != 15) continue;
        add_cell(cells, scale, data_of_cell(scale, width, latents, k), !scale.quick || example,
                 seeds);
      }
  return cells;
}

Band around(double reported, double by) {
  return {reported - by, reported + by};
}

void add_reported(std::vector<LabRow>& rows, const LabResults& r, const Cell& c) {
  const auto add = [&](const char* what, const char* method, const char* key, double reported,
                       Band band) {
    rows.push_back(r.row(fmt::format("M {:>2}, N {:>3}: {}", c.width, c.latents, what),
                         group_of(c.width, c.latents, c.k, method), key,
                         fmt::format("{:.3f}", reported), band));
  };
  add("SAE, latent MCC", "sae", "latent_mcc", c.sae, around(c.sae, .10));
  add("MLP 32, latent MCC", "mlp32", "latent_mcc", c.mlp, around(c.mlp, .10));
  add("sparse coding, latent MCC", "codes", "latent_mcc", c.codes, {c.codes - .08});
  add("SAE, dictionary MCC", "sae", "dictionary_mcc", c.sae_dictionary,
      around(c.sae_dictionary, .10));
  add("sparse coding, dictionary MCC", "codes", "dictionary_mcc", c.codes_dictionary,
      around(c.codes_dictionary, .10));
}

// DL-FISTA in every cell, with M over the line that compressed sensing asks for (A2).
void add_boundary(std::vector<LabRow>& rows, const LabResults& r) {
  for (const int64_t width : kWidths)
    for (const int64_t latents : kLatents) {
      const double share = static_cast<double>(width) / cs_line(latents, 3);
      rows.push_back(
          r.row(fmt::format("M {:>2}, N {:>3}, M / 2K ln(N/K) {:.2f}: DL-FISTA, latent MCC", width,
                            latents, share),
                group_of(width, latents, 3, "dl_fista"), "latent_mcc", "",
                share >= 1 ? std::optional(Band{.95}) : std::nullopt));
    }
}

std::vector<LabRow> regimes_table(const LabResults& r) {
  std::vector<LabRow> rows;
  for (const Cell& cell : kReported) add_reported(rows, r, cell);
  const auto gap = [&](int64_t width, int64_t latents) {
    const std::string codes = group_of(width, latents, 3, "codes");
    const std::string sae = group_of(width, latents, 3, "sae");
    return r.has(codes) && r.has(sae)
               ? std::optional(r.mean(codes, "latent_mcc") - r.mean(sae, "latent_mcc"))
               : std::nullopt;
  };
  rows.push_back(
      derived_row("M 16, N 32: sparse coding above the SAE by", gap(16, 32), ".351", Band{.25}));
  rows.push_back(
      derived_row("M 32, N 16: sparse coding above the SAE by", gap(32, 16), "-.059", Band{-1, 0}));
  rows.push_back(
      derived_row("M 32, N 32: sparse coding above the SAE by", gap(32, 32), "-.053", Band{-1, 0}));
  add_boundary(rows, r);
  for (const int64_t k : {9, 15})
    for (const int64_t width : kWidths)
      for (const int64_t latents : kLatents)
        for (const char* method : {"sae", "mlp32", "codes", "dl_fista"}) {
          const std::string group = group_of(width, latents, k, method);
          if (r.has(group))
            rows.push_back(r.row(
                fmt::format("K {:>2}, M {:>2}, N {:>3}: {}, latent MCC", k, width, latents, method),
                group, "latent_mcc", ""));
        }
  return rows;
}

}  // namespace

LabExperiment regimes_experiment() {
  return {"regimes", "E4, A2", "latents x width x active: sparse coding against encoders (Fig 5)",
          regimes_cells, regimes_table};
}

}  // namespace megadict
