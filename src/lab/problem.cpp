#include "lab/problem.h"

#include <cmath>

namespace megadict {

namespace {

void add_sample(const SynthSource& source, int64_t row, int64_t at, Tiles<float>& x,
                Tiles<float>& s) {
  std::vector<float> values(static_cast<size_t>(x.features()));
  source.activation(row, values.data());
  for (int64_t f = 0; f < x.features(); ++f) x.at(at, f) = values[static_cast<size_t>(f)];
  const SynthCode code = source.code(row);
  for (size_t i = 0; i < code.latents.size(); ++i)
    s.at(at, code.latents[i]) = static_cast<float>(code.values[i]);
}

}  // namespace

LabProblem make_problem(const SynthOptions& options, int64_t samples) {
  const SynthSource source(options);
  const int64_t half = samples / 2, width = options.width, latents = options.n_latents;
  LabProblem problem{.options = options,
                     .x_train = Tiles<float>(half, width),
                     .x_test = Tiles<float>(half, width),
                     .s_train = Tiles<float>(half, latents),
                     .s_test = Tiles<float>(half, latents),
                     .dictionary = Learnt<float>("D", width, latents)};
  for (int64_t i = 0; i < half; ++i) {
    add_sample(source, i, i, problem.x_train, problem.s_train);
    add_sample(source, half + i, i, problem.x_test, problem.s_test);
  }
  for (int64_t j = 0; j < latents; ++j)
    for (int64_t f = 0; f < width; ++f)
      problem.dictionary.value[static_cast<size_t>(f * latents + j)] =
          source.dictionary()[static_cast<size_t>(j * width + f)];
  return problem;
}

double cs_line(int64_t latents, int64_t k) {
  const auto n = static_cast<double>(latents), active = static_cast<double>(k);
  return 2 * active * std::log(n / active);
}

}  // namespace megadict
