#include "lab/methods.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "eval/pursuit.h"
#include "lab/code_rules.h"
#include "lab/dictionary_learning.h"
#include "lab/gradient_codes.h"
#include "lab/imitation.h"
#include "lab/lca.h"
#include "lab/scores.h"

namespace megadict {

namespace {

const Tiles<float>& scored_samples(const LabProblem& problem, const MethodSettings& s) {
  return s.on_train ? problem.x_train : problem.x_test;
}

const Tiles<float>& true_codes(const LabProblem& problem, const MethodSettings& s) {
  return s.on_train ? problem.s_train : problem.s_test;
}

void refuse_divergence(double loss, int64_t step, const MethodSettings& s) {
  if (!std::isfinite(loss))
    fail(ExitCode::diverged,
         fmt::format("{} with rate {:g} and lambda {:g}: the loss of step {} is not finite",
                     s.method, s.rate, s.lambda, step),
         "a smaller --rate");
}

SaeSettings sae_settings(const LabProblem& problem, const MethodSettings& s) {
  return {.width = problem.options.width,
          .latents = s.latents,
          .hidden = s.hidden,
          .activation = s.method == "sae" ? "relu" : s.method,
          .bias = s.bias,
          .k = s.k,
          .lambda = s.lambda,
          .unit_columns = s.unit_columns,
          .seed = s.seed};
}

void log_point(const LabProblem& problem, const Tiles<float>& truth, int64_t step, double loss,
               const Learned& now, Learned& out) {
  out.curve["step"].push_back(static_cast<double>(step));
  out.curve["train_loss"].push_back(loss);
  out.curve["latent_mcc"].push_back(latent_mcc(truth, now.codes));
  out.curve["dictionary_mcc"].push_back(dictionary_mcc(problem.dictionary, now.dictionary));
}

bool is_logged(const MethodSettings& s, int64_t step) {
  return s.log_every > 0 && step % s.log_every == 0;
}

Learned learn_sae(const LabProblem& problem, const MethodSettings& s) {
  SmallSae<float> sae(sae_settings(problem, s));
  if (s.known_dictionary) sae.fix_decoder(problem.dictionary.value);
  const std::vector<Learnt<float>*> parameters = sae.parameters();
  std::vector<Adam<float>> adam(parameters.size());
  SaePass<float> pass, of_test;
  Learned out;
  const auto look = [&] {
    sae.normalise();
    sae.forward(scored_samples(problem, s), of_test);
    return Learned{sae.decoder(), sae.output_bias(), of_test.codes, 0, {}, {}};
  };
  for (int64_t step = 0; step < s.steps; ++step) {
    sae.normalise();
    const SaeLoss loss = sae.gradients(problem.x_train, pass);
    refuse_divergence(loss.total, step, s);
    if (is_logged(s, step))
      log_point(problem, true_codes(problem, s), step, loss.total, look(), out);
    for (size_t i = 0; i < parameters.size(); ++i)
      adam[i].step(*parameters[i], {.rate = s.rate, .beta1 = s.beta1});
    out.train_loss = loss.total;
  }
  Learned last = look();
  last.train_loss = out.train_loss;
  last.curve = std::move(out.curve);
  return last;
}

CodeSettings code_settings(const LabProblem& problem, const MethodSettings& s) {
  return {.width = problem.options.width,
          .latents = s.latents,
          .lambda = s.lambda,
          .output_bias = s.bias,
          .unit_columns = s.unit_columns,
          .seed = s.seed};
}

Learned learn_codes(const LabProblem& problem, const MethodSettings& s) {
  GradientCodes<float> codes(code_settings(problem, s), problem.x_train.samples());
  Learned out;
  const auto look = [&] {
    Learned now{codes.dictionary(), codes.bias(), codes.codes(), 0, {}, {}};
    if (s.unit_columns) make_columns_unit(now.dictionary);
    return now;
  };
  for (int64_t step = 0; step < s.steps; ++step) {
    // The training half's own codes: those of the test half cost as much as the training.
    if (is_logged(s, step)) log_point(problem, problem.s_train, step, out.train_loss, look(), out);
    out.train_loss = codes.step(problem.x_train, s.rate).total;
    refuse_divergence(out.train_loss, step, s);
  }
  Learned last = look();
  if (!s.on_train) last.codes = optimised_codes(last, problem.x_test, s).codes;
  last.train_loss = out.train_loss;
  last.curve = std::move(out.curve);
  return last;
}

void optimise(const LabProblem& problem, const MethodSettings& s, const Tiles<float>* from,
              Learned& of) {
  OptimisedCodes found =
      optimised_codes(of, scored_samples(problem, s), s, from, &true_codes(problem, s));
  of.codes = std::move(found.codes);
  of.code_curve = std::move(found.curve);
}

template <bool warm>
Learned learn_sae_then_codes(const LabProblem& problem, const MethodSettings& settings) {
  MethodSettings of_sae = settings;
  of_sae.method = "sae";
  Learned out = learn_sae(problem, of_sae);
  const Tiles<float> of_encoder = out.codes;
  optimise(problem, settings, warm ? &of_encoder : nullptr, out);
  return out;
}

Learned learn_fista(const LabProblem& problem, const MethodSettings& s) {
  constexpr int64_t kTestSteps = 500;
  Learned out;
  out.dictionary = learn_by_fista(problem.x_train, {.latents = s.latents,
                                                    .rounds = s.rounds,
                                                    .iterations = s.inner,
                                                    .lambda = s.lambda,
                                                    .seed = s.seed});
  run_fista(out.dictionary, scored_samples(problem, s), s.lambda, kTestSteps, out.codes);
  return out;
}

Learned learn_lca(const LabProblem& problem, const MethodSettings& s) {
  const LcaSettings lca{.iterations = s.inner};
  Learned out;
  std::vector<double> losses;
  out.dictionary = learn_by_lca(problem.x_train,
                                {.latents = s.latents,
                                 .steps = s.steps,
                                 .rate = s.rate,
                                 .lambda = s.lambda,
                                 .lca = lca,
                                 .whole_loop = s.method == "dl_lca_loop",
                                 .seed = s.seed},
                                &losses);
  out.train_loss = losses.empty() ? 0 : losses.back();
  run_lca(out.dictionary, scored_samples(problem, s), s.lambda, lca, out.codes);
  return out;
}

Learned learn_kmeans(const LabProblem& problem, const MethodSettings& s) {
  Learned out;
  out.dictionary = learn_by_kmeans(problem.x_train, s.latents, s.seed).centres;
  out.codes = nearest_centres(out.dictionary, scored_samples(problem, s));
  return out;
}

// The true dictionary with codes by optimisation: what remains when only inference is asked for.
Learned given_dictionary(const LabProblem& problem, const MethodSettings& s) {
  Learned out;
  out.dictionary = problem.dictionary;
  optimise(problem, s, nullptr, out);
  return out;
}

}  // namespace

std::vector<Method> all_methods() {
  return {
      {"sae", "B1, B3", "one linear layer or an MLP, ReLU, linear decoder", learn_sae},
      {"topk", "B6", "the k largest pre-activations", learn_sae},
      {"gated", "B7", "gates and magnitudes apart", learn_sae},
      {"jumprelu", "B8", "a learnt threshold a latent", learn_sae},
      {"prolu", "B9", "a bias that gates without being added", learn_sae},
      {"codes", "C1", "gradient sparse coding", learn_codes},
      {"sae_then_codes", "C3", "an autoencoder's dictionary, codes optimised for it",
       learn_sae_then_codes<false>},
      {"sae_then_warm_codes", "C3", "the same, from the autoencoder's codes",
       learn_sae_then_codes<true>},
      {"true_dictionary", "C3", "codes optimised for the true dictionary", given_dictionary},
      {"dl_fista", "C8b", "FISTA and block coordinates in turn", learn_fista},
      {"imitation", "", "an encoder trained on FISTA's codes", learn_imitation},
      {"dl_lca", "B11", "LCA, and Adam on D for the codes as they are", learn_lca},
      {"dl_lca_loop", "B11", "LCA, and Adam on D through all of its steps", learn_lca},
      {"kmeans", "C9", "one-hot codes", learn_kmeans},
  };
}

Learned learn(const LabProblem& problem, const MethodSettings& settings) {
  std::vector<std::string> names;
  for (const Method& method : all_methods()) {
    if (method.name == settings.method) return method.learn(problem, settings);
    names.emplace_back(method.name);
  }
  fail(ExitCode::usage, fmt::format("unknown method '{}'", settings.method),
       nearest_name(settings.method, names));
}

OptimisedCodes optimised_codes(const Learned& of, const Tiles<float>& x, const MethodSettings& s,
                               const Tiles<float>* from, const Tiles<float>* truth) {
  GradientCodes<float> codes({.width = of.dictionary.rows,
                              .latents = of.dictionary.cols,
                              .lambda = s.lambda,
                              .unit_columns = s.unit_columns},
                             x.samples(), of.dictionary, of.bias);
  if (from != nullptr) codes.start_from(*from);
  OptimisedCodes out;
  for (int64_t step = 0; step < s.code_steps; ++step) {
    const bool logged = truth != nullptr && is_logged(s, step);
    const double mcc = logged ? latent_mcc(*truth, codes.codes()) : 0;
    const SaeLoss loss = codes.step(x, s.code_rate);
    refuse_divergence(loss.total, step, s);
    if (!logged) continue;
    out.curve["step"].push_back(static_cast<double>(step));
    out.curve["loss"].push_back(loss.total);
    out.curve["latent_mcc"].push_back(mcc);
  }
  out.codes = codes.codes();
  return out;
}

Tiles<float> pursuit_codes(std::string_view name, const Learnt<float>& dictionary,
                           const Tiles<float>& x, int64_t k, double lambda) {
  const at::Tensor x_bd = rows_of(x), atoms_nd = columns_of(dictionary);
  const PursuitSettings settings{.k = k, .lambda = lambda};
  for (const Pursuit& pursuit : all_pursuits()) {
    if (pursuit.name != name) continue;
    const Codes found = pursuit.run({x_bd, atoms_nd, settings});
    Tiles<float> codes(x.samples(), dictionary.cols);
    const auto* start = found.row_start.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < x.samples(); ++i)
      for (int64_t e = start[i]; e < start[i + 1]; ++e)
        codes.at(i, found.latent.const_data_ptr<int32_t>()[e]) =
            found.value.const_data_ptr<float>()[e];
    return codes;
  }
  fail(ExitCode::usage, fmt::format("unknown pursuit '{}'", name));
}

nlohmann::ordered_json settings_json(const MethodSettings& s) {
  return {{"method", s.method},
          {"latents", s.latents},
          {"hidden", s.hidden},
          {"k", s.k},
          {"lambda", s.lambda},
          {"rate", s.rate},
          {"beta1", s.beta1},
          {"steps", s.steps},
          {"bias", s.bias},
          {"unit_columns", s.unit_columns},
          {"known_dictionary", s.known_dictionary},
          {"on_train", s.on_train},
          {"code_steps", s.code_steps},
          {"code_rate", s.code_rate},
          {"rounds", s.rounds},
          {"inner", s.inner},
          {"seed", s.seed},
          {"log_every", s.log_every}};
}

nlohmann::ordered_json scores_json(const LabProblem& problem, const MethodSettings& s,
                                   const Learned& learned) {
  const Tiles<float>& x = scored_samples(problem, s);
  Tiles<float> x_hat(x.samples(), x.features()), unused = x_hat;
  multiply(learned.dictionary.view(), learned.bias.present() ? learned.bias.value.data() : nullptr,
           learned.codes, x_hat);
  const SaeLoss loss = synthetic_loss(x, x_hat, learned.codes, s.lambda, unused);
  double sum = 0;
  for (const float z : learned.codes.values()) sum += std::abs(static_cast<double>(z));
  nlohmann::ordered_json json = {{"mse", loss.mse},
                                 {"loss", loss.total},
                                 {"train_loss", learned.train_loss},
                                 {"l1", sum / static_cast<double>(learned.codes.values().size())},
                                 {"l0", l0_fraction(learned.codes, 0)},
                                 {"l0_1e-5", l0_fraction(learned.codes, 1e-5)},
                                 {"l0_1e-4", l0_fraction(learned.codes, 1e-4)},
                                 {"l0_1e-3", l0_fraction(learned.codes, 1e-3)},
                                 {"latent_mcc", latent_mcc(true_codes(problem, s), learned.codes)}};
  json["dictionary_mcc"] = dictionary_mcc(problem.dictionary, learned.dictionary);
  json["dictionary_cosine"] = dictionary_cosine(problem.dictionary, learned.dictionary);
  if (!learned.curve.empty()) json["curve"] = learned.curve;
  if (!learned.code_curve.empty()) json["code_curve"] = learned.code_curve;
  return json;
}

}  // namespace megadict
