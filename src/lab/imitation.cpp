#include "lab/imitation.h"

#include <fmt/format.h>

#include <cmath>

#include "base/error.h"
#include "lab/dictionary_learning.h"

namespace megadict {

namespace {

// The mean over both axes of (z - s)^2, and its gradient.
double imitation_loss(const Tiles<float>& wanted, const Tiles<float>& codes,
                      Tiles<float>& d_codes) {
  fit(d_codes, codes.samples(), codes.features());
  const double by = 1 / static_cast<double>(codes.values().size());
  double squares = 0;
  for (size_t i = 0; i < codes.values().size(); ++i) {
    const double off = codes.values()[i] - wanted.values()[i];
    squares += off * off;
    d_codes.values()[i] = static_cast<float>(2 * by * off);
  }
  return squares * by;
}

}  // namespace

Learned learn_imitation(const LabProblem& problem, const MethodSettings& s) {
  Learned out;
  out.dictionary = s.known_dictionary ? problem.dictionary
                                      : learn_by_fista(problem.x_train, {.latents = s.latents,
                                                                         .rounds = s.rounds,
                                                                         .iterations = s.inner,
                                                                         .lambda = s.lambda,
                                                                         .seed = s.seed});
  Tiles<float> wanted;
  run_fista(out.dictionary, problem.x_train, s.lambda, kTeacherSteps, wanted);
  SmallSae<float> sae({.width = problem.options.width,
                       .latents = s.latents,
                       .hidden = s.hidden,
                       .bias = true,
                       .lambda = 0,
                       .seed = s.seed});
  sae.fix_decoder(out.dictionary.value);
  const std::vector<Learnt<float>*> parameters = sae.parameters();
  std::vector<Adam<float>> adam(parameters.size());
  SaePass<float> pass;
  for (int64_t step = 0; step < s.steps; ++step) {
    sae.forward(problem.x_train, pass);
    out.train_loss = imitation_loss(wanted, pass.codes, pass.d_codes);
    if (!std::isfinite(out.train_loss))
      fail(ExitCode::diverged,
           fmt::format("imitation with rate {:g}: the loss of step {} is not finite", s.rate, step),
           "a smaller --rate");
    sae.encoder_gradients(problem.x_train, pass);
    for (size_t i = 0; i < parameters.size(); ++i) adam[i].step(*parameters[i], {.rate = s.rate});
  }
  sae.forward(s.on_train ? problem.x_train : problem.x_test, pass);
  out.codes = pass.codes;
  return out;
}

}  // namespace megadict
