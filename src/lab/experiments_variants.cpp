// A3 and L2e: E2 and E3 on data whose latents are not drawn alike: by Zipf's weights, with a
// varying number active, in correlated groups; beside the data of the seeds.
#include <fmt/format.h>

#include "lab/cells.h"
#include "lab/experiments.h"

namespace megadict {

namespace {

constexpr uint64_t kBase = 20240926;

struct Variant {
  const char *name, *what;
  double zipf;
  const char* k_dist;
  double correlation;
};
constexpr Variant kVariants[] = {
    {"plain", "fixed K, alike (A1)", 0, "fixed", 0},
    {"zipf", "Zipf weights (A3)", 1, "fixed", 0},
    {"variable", "K uniform on 1 to 2K - 1 (A3b)", 0, "uniform", 0},
    {"correlated", "groups of 4, rho .5 (A3b)", 0, "fixed", .5},
    {"both", "variable and correlated (A3b)", 0, "uniform", .5},
};

struct Way {
  const char *name, *what;
  MethodSettings settings;
  double cost_s;
};

// `steps`: 0 = E2's 20,000 and E3's 40,000.
std::vector<Way> ways_of(const LabData& data, int64_t steps) {
  const MethodSettings known = {.latents = data.options.n_latents,
                                .k = data.options.k,
                                .steps = steps > 0 ? steps : 20000,
                                .known_dictionary = true};
  MethodSettings unknown = known;
  unknown.known_dictionary = false;
  if (steps == 0) unknown.steps = 40000;
  std::vector<Way> ways = {{"known_sae", "E2, linear encoder", known, 2},
                           {"known_mlp32", "E2, MLP 32", known, 6},
                           {"known_codes", "E2, codes optimised for D", known, 3},
                           {"sae", "E3, SAE", unknown, 4},
                           {"mlp32", "E3, MLP 32", unknown, 12},
                           {"codes", "E3, gradient sparse coding", unknown, 5},
                           {"dl_fista", "E3, DL-FISTA", unknown, 1}};
  ways[1].settings.hidden = ways[4].settings.hidden = {32};
  ways[2].settings.method = "true_dictionary";
  ways[2].settings.code_rate = 1e-3;
  ways[2].settings.code_steps = known.steps;
  ways[5].settings.method = "codes";
  ways[6].settings.method = "dl_fista";
  ways[6].settings.lambda = .05;
  return ways;
}

std::string group_of(const Variant& variant, const Way& way) {
  return fmt::format("{}_{}", variant.name, way.name);
}

std::vector<LabCell> variant_cells(const LabScale& scale) {
  std::vector<LabCell> cells;
  for (const Variant& variant : kVariants) {
    LabData data = data_of(scale, kBase);
    data.options.zipf = variant.zipf;
    data.options.k_dist = variant.k_dist;
    data.options.correlation = variant.correlation;
    for (const Way& way : ways_of(data, scale.quick ? 10000 : 0)) {
      if (scale.quick && way.settings.hidden.size() == 1) continue;
      add_cells(cells, group_of(variant, way), data, apply(scale, way.settings),
                seeds_of(scale, scale.quick ? 1 : 3), scale.quick ? way.cost_s / 3 : way.cost_s);
    }
  }
  return cells;
}

std::vector<LabRow> variant_table(const LabResults& r) {
  std::vector<LabRow> rows;
  for (const Way& way : ways_of({}, 0))
    for (const Variant& variant : kVariants) {
      const std::string group = group_of(variant, way);
      if (!r.has(group)) continue;
      rows.push_back(r.row(fmt::format("{}, {}: latent MCC", way.what, variant.what), group,
                           "latent_mcc", ""));
      if (!way.settings.known_dictionary)
        rows.push_back(r.row(fmt::format("{}, {}: dictionary MCC", way.what, variant.what), group,
                             "dictionary_mcc", ""));
    }
  return rows;
}

}  // namespace

LabExperiment variants_experiment() {
  return {"variants", "A3, A3b, L2e", "E2 and E3 on latents that are not drawn alike",
          variant_cells, variant_table};
}

}  // namespace megadict
