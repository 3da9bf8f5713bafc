// L2f: samples that are always (or nearly) two atoms at once. Does an autoencoder find the atoms or
// their sums, and does asking for other angles between columns change that?
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/philox.h"
#include "lab/cells.h"
#include "lab/column_angles.h"
#include "lab/experiments.h"
#include "lab/small_sae.h"

namespace megadict {

namespace {

constexpr uint64_t kBase = 20250104;
constexpr int64_t kWidth = 32, kKind = 4, kLatents = 24;  // atoms a_1..4 and b_1..4
constexpr int64_t kSamples = 1024;                        // of each half
constexpr double kSingles[] = {0, .1, .3}, kLambdas[] = {.05, .1, .2},
                 kAngles[] = {-.1, -.01, 0, .01, .1};
constexpr double kFound = .95;
constexpr int kBins = 20;

using Directions = std::vector<std::vector<double>>;  // of length 1

std::vector<double> unit(std::vector<double> v) {
  double squares = 0;
  for (const double one : v) squares += one * one;
  for (double& one : v) one /= std::max(std::sqrt(squares), 1e-12);
  return v;
}

// All a, then all b.
Directions draw_directions(uint64_t seed, int64_t count, uint64_t table) {
  const Rng rng{seed, Purpose::lab_draw, table};
  Directions all;
  for (int64_t i = 0; i < count; ++i) {
    std::vector<double> one;
    for (int64_t f = 0; f < kWidth; ++f)
      one.push_back(rng.normals(static_cast<uint64_t>(i), static_cast<uint32_t>(f))[0]);
    all.push_back(unit(std::move(one)));
  }
  return all;
}

Directions sums_of(const Directions& atoms) {
  Directions sums;
  for (int64_t i = 0; i < kKind; ++i)
    for (int64_t j = 0; j < kKind; ++j) {
      std::vector<double> sum = atoms[static_cast<size_t>(i)];
      for (size_t f = 0; f < sum.size(); ++f) sum[f] += atoms[static_cast<size_t>(kKind + j)][f];
      sums.push_back(unit(std::move(sum)));
    }
  return sums;
}

// x = s (a_i + b_j), or s times one of the two with probability `single`; rows from `first` on.
Tiles<float> samples_of(const Directions& atoms, uint64_t seed, double single, int64_t first) {
  constexpr uint64_t kTable = 101;
  const Rng rng{seed, Purpose::lab_draw, kTable};
  Tiles<float> x(kSamples, kWidth);
  const auto pick = [](double uniform) { return static_cast<size_t>(uniform * kKind); };
  for (int64_t row = 0; row < kSamples; ++row) {
    const auto id = static_cast<uint64_t>(first + row);
    const size_t a = pick(rng.uniform(id, 0)),
                 b = static_cast<size_t>(kKind) + pick(rng.uniform(id, 1));
    const bool alone = rng.uniform(id, 2) < single, left = rng.uniform(id, 3) < .5;
    const double s = std::abs(rng.normals(id, 4)[0]);
    for (int64_t f = 0; f < kWidth; ++f) {
      const auto at = static_cast<size_t>(f);
      const double from_a = alone && !left ? 0 : atoms[a][at];
      const double from_b = alone && left ? 0 : atoms[b][at];
      x.at(row, f) = static_cast<float>(s * (from_a + from_b));
    }
  }
  return x;
}

// Columns with a code in any sample.
Directions alive_columns(const Learnt<float>& decoder, const Tiles<float>& codes) {
  Directions columns;
  for (int64_t j = 0; j < decoder.cols; ++j) {
    bool fires = false;
    for (int64_t i = 0; i < codes.samples() && !fires; ++i) fires = codes.at(i, j) > 0;
    if (!fires) continue;
    std::vector<double> column;
    for (int64_t f = 0; f < decoder.rows; ++f)
      column.push_back(decoder.value[static_cast<size_t>(f * decoder.cols + j)]);
    columns.push_back(unit(std::move(column)));
  }
  return columns;
}

struct Match {
  double found = 0, mean = 0;  // directions with a column at kFound or nearer; mean best cosine
};

Match match(const Directions& wanted, const Directions& columns) {
  Match result;
  for (const auto& direction : wanted) {
    double best = -1;
    for (const auto& column : columns) {
      double cosine = 0;
      for (size_t f = 0; f < column.size(); ++f) cosine += column[f] * direction[f];
      best = std::max(best, cosine);
    }
    result.found += best >= kFound ? 1 : 0;
    result.mean += best / static_cast<double>(wanted.size());
  }
  return result;
}

struct Composition {
  double single = 0, lambda = 0, angle = 0, rate = 1e-3;
  int64_t steps = 0;
  uint64_t seed = 0;
};

SmallSae<float> train(const Composition& c, const Tiles<float>& x) {
  constexpr uint64_t kModel = 42;
  SmallSae<float> sae(
      {.width = kWidth, .latents = kLatents, .lambda = c.lambda, .seed = c.seed + kModel});
  const std::vector<Learnt<float>*> parameters = sae.parameters();
  std::vector<Adam<float>> adam(parameters.size());
  SaePass<float> pass;
  for (int64_t step = 0; step < c.steps; ++step) {
    sae.normalise();
    const SaeLoss loss = sae.gradients(x, pass);
    if (!std::isfinite(loss.total))
      fail(ExitCode::diverged, fmt::format("the loss of step {} is not finite", step),
           "a smaller --rate");
    for (size_t i = 0; i < parameters.size(); ++i) {
      if (parameters[i] == &sae.decoder() && c.angle != 0)
        add_angle_gradient(*parameters[i], c.angle);
      adam[i].step(*parameters[i], {.rate = c.rate});
    }
  }
  sae.normalise();
  return sae;
}

nlohmann::ordered_json run_cell(const Composition& c) {
  constexpr uint64_t kAtoms = 100, kRandom = 102;
  const Directions atoms = draw_directions(c.seed, 2 * kKind, kAtoms);
  const Tiles<float> x_train = samples_of(atoms, c.seed, c.single, 0);
  const Tiles<float> x_test = samples_of(atoms, c.seed, c.single, kSamples);
  const SmallSae<float> sae = train(c, x_train);
  SaePass<float> pass;
  sae.forward(x_test, pass);
  Tiles<float> unused = pass.x_hat;
  const SaeLoss loss = synthetic_loss(x_test, pass.x_hat, pass.codes, c.lambda, unused);
  double active = 0;
  for (const float z : pass.codes.values()) active += z > 0 ? 1 : 0;
  const Directions columns = alive_columns(sae.decoder(), pass.codes);
  const Match of_atoms = match(atoms, columns), of_sums = match(sums_of(atoms), columns);
  const auto alive = static_cast<int64_t>(columns.size());
  return {{"mse", loss.mse},
          {"l0", active / static_cast<double>(kSamples)},
          {"alive", alive},
          {"atoms_found", of_atoms.found},
          {"atoms_cosine", of_atoms.mean},
          {"sums_found", of_sums.found},
          {"sums_cosine", of_sums.mean},
          {"squared_cosine", mean_squared_cosine(sae.decoder())},
          {"cosines", cosine_histogram(columns, kBins)},
          {"cosines_of_random", cosine_histogram(draw_directions(c.seed, alive, kRandom), kBins)}};
}

std::string group_of(double single, double lambda, double angle) {
  return fmt::format("q{:g}_lambda{:g}_mu{:g}", single, lambda, angle);
}

void refuse_other_problems(const LabScale& scale) {
  if (scale.latents + scale.width + scale.k + scale.samples > 0 || scale.zipf > 0)
    fail(ExitCode::usage, "compositions has a problem of its own",
         "--steps, --rate, --lambda, --seeds");
}

std::vector<LabCell> composition_cells(const LabScale& scale) {
  std::vector<LabCell> cells;
  for (const double single : kSingles)
    for (const double lambda : kLambdas)
      for (const double angle : kAngles)
        for (int64_t seed = 0; seed < seeds_of(scale, scale.quick ? 1 : 3); ++seed) {
          if ((scale.quick || scale.lambda > 0) && lambda != .1) continue;
          Composition c{single, lambda, angle};
          c.steps = scale.quick ? 5000 : 20000;
          if (scale.steps > 0) c.steps = scale.steps;
          if (scale.rate > 0) c.rate = scale.rate;
          if (scale.lambda > 0) c.lambda = scale.lambda;
          c.seed = kBase + static_cast<uint64_t>(seed);
          cells.push_back({.group = group_of(single, lambda, angle),
                           .seed = seed,
                           .cost_s = 2e-4 * static_cast<double>(c.steps),
                           .settings = {{"single", single},
                                        {"lambda", c.lambda},
                                        {"mu", angle},
                                        {"rate", c.rate},
                                        {"steps", c.steps},
                                        {"seed", c.seed}},
                           .run = [=] { return run_cell(c); }});
        }
  return cells;
}

std::vector<LabRow> composition_table(const LabResults& r) {
  struct Number {
    const char *key, *text;
  };
  constexpr Number kNumbers[] = {{"atoms_found", "atoms found of 8"},
                                 {"sums_found", "sums found of 16"},
                                 {"atoms_cosine", "mean best cosine of an atom"},
                                 {"sums_cosine", "mean best cosine of a sum"},
                                 {"mse", "MSE"},
                                 {"l0", "active latents"},
                                 {"alive", "alive of 24"}};
  std::vector<LabRow> rows;
  for (const double single : kSingles)
    for (const double lambda : kLambdas) {
      for (const double angle : kAngles)
        for (const Number& number : kNumbers) {
          const std::string group = group_of(single, lambda, angle);
          if (r.has(group))
            rows.push_back(r.row(
                fmt::format("q {:g}, lambda {:g}, mu {:g}: {}", single, lambda, angle, number.text),
                group, number.key, ""));
        }
      const std::string without = group_of(single, lambda, 0);
      for (const double angle : kAngles) {
        const std::string with = group_of(single, lambda, angle);
        if (angle >= 0 || single == 0 || !r.has(without) || !r.has(with)) continue;
        rows.push_back(claim_row(
            fmt::format("claim, q {:g}, lambda {:g}: atoms found with mu {:g} less without", single,
                        lambda, angle),
            r.mean(with, "atoms_found") - r.mean(without, "atoms_found"), "> 0", {.low = 1e-9}));
      }
    }
  return rows;
}

}  // namespace

LabExperiment compositions_experiment() {
  return {"compositions",
          "L2f",
          "samples of two atoms at once: are atoms found, or their sums?",
          composition_cells,
          composition_table,
          refuse_other_problems};
}

}  // namespace megadict
