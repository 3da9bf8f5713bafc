// megadict bench lab: whole runs of the laboratory's smallest problem, whose steps cost
// microseconds.
#include <fmt/format.h>

#include <cmath>

#include "app/bench.h"
#include "kernels/rates.h"
#include "lab/cells.h"
#include "lab/flops.h"
#include "lab/gradient_codes.h"

namespace megadict {

namespace {

constexpr int64_t kWidth = 8, kLatents = 16, kActive = 3;
constexpr double kRateSeconds = 0.5;

Tiles<double> in_double(const Tiles<float>& from) {
  Tiles<double> to(from.samples(), from.features());
  std::copy(from.values().begin(), from.values().end(), to.values().begin());
  return to;
}

// Entries of the first step's gradients that are not those of the same weights in fp64.
void compare_gradients(const LabProblem& problem, BenchLine& line) {
  const SaeSettings settings = {.width = kWidth, .latents = kLatents, .seed = 1};
  SmallSae<float> sae(settings);
  SmallSae<double> reference(settings);
  SaePass<float> pass;
  SaePass<double> wide;
  const auto got = sae.parameters();
  const auto want = reference.parameters();
  sae.normalise();
  for (size_t i = 0; i < got.size(); ++i)
    std::copy(got[i]->value.begin(), got[i]->value.end(), want[i]->value.begin());
  sae.gradients(problem.x_train, pass);
  reference.gradients(in_double(problem.x_train), wide);
  for (size_t i = 0; i < got.size(); ++i)
    for (size_t at = 0; at < got[i]->gradient.size(); ++at, ++line.compared) {
      const double exact = want[i]->gradient[at];
      const double error = std::abs(static_cast<double>(got[i]->gradient[at]) - exact);
      if (!(error <= 1e-4 * std::abs(exact) + 1e-7)) ++line.wrong;
    }
}

BenchLine run_line(const LabProblem& problem, const MethodSettings& settings, int64_t flops,
                   const std::string& what, int repeats) {
  BenchLine line = line_of(fmt::format("{} steps of {}", settings.steps, what),
                           times_of(repeats, [&] { learn(problem, settings); }),
                           static_cast<double>(flops), "GFLOP/s");
  line.bound = sgemm_tile_rate(256, kRateSeconds);
  line.bound_name = "sgemm tiles";
  return line;
}

}  // namespace

BenchReport bench_lab(const LabBench& options) {
  SynthOptions data;
  data.n_latents = kLatents;
  data.width = kWidth;
  data.k = kActive;
  data.seed = 20240926;
  const LabProblem problem = make_problem(data);
  BenchReport report;
  report.title = fmt::format("{} latents, {} wide, {} samples, one thread", kLatents, kWidth,
                             problem.x_train.samples());
  const MethodSettings sae = {.steps = options.sae_steps};
  MethodSettings codes = {.method = "codes", .steps = options.codes_steps};
  codes.on_train = true;
  report.lines.push_back(run_line(problem, sae,
                                  sae_training_flops({}, sae.steps, FlopMode::consistent),
                                  "a linear autoencoder", options.repeats));
  compare_gradients(problem, report.lines.back());
  report.lines.push_back(run_line(problem, codes,
                                  coding_training_flops({}, codes.steps, FlopMode::consistent),
                                  "gradient sparse coding", options.repeats));
  return report;
}

}  // namespace megadict
