// The ways of finding codes and dictionaries that the seeds set side by side, each one call: given
// the training half of a problem, the dictionary and the codes of the test half.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "lab/problem.h"
#include "lab/small_sae.h"

namespace megadict {

struct MethodSettings {
  std::string method = "sae";  // a row of all_methods()
  int64_t latents = 16;
  std::vector<int64_t> hidden = {};  // of the encoder (B3)
  int64_t k = 3;                     // topk, pursuits
  double lambda = 0.01;  // of the synthetic loss; dl_fista, dl_lca: of the lasso (lambda_F)
  double rate = 1e-3;
  double beta1 = 0.9;
  int64_t steps = 20000;
  bool bias = false;
  bool unit_columns = true;
  bool known_dictionary = false;  // the true one, which stays (E2)
  bool on_train = false;          // codes of the training half (E6)
  int64_t code_steps = 10000;     // of codes that are optimised for the test half (C1, C3)
  double code_rate = 3e-3;
  int64_t rounds = 200, inner = 30;  // dl_fista; dl_lca: inner alone
  uint64_t seed = 0;
  int64_t log_every = 0;  // steps between two points of the curve; 0 = none
};

nlohmann::ordered_json settings_json(const MethodSettings& settings);

// A learnt dictionary, and codes of one half of the problem's samples in it.
struct Learned {
  Learnt<float> dictionary, bias;  // [width, latents], [width] or absent
  Tiles<float> codes;
  double train_loss = 0;  // of the last step; 0 where there is none
  // "step" and what was scored there: of training, and of codes that are optimised afterwards.
  std::map<std::string, std::vector<double>> curve, code_curve;
};

struct Method {
  std::string_view name, item, summary;
  Learned (*learn)(const LabProblem& problem, const MethodSettings& settings);
};

std::vector<Method> all_methods();
// Exit 2 for an unknown method and for settings that cannot be, 4 with the step where the loss is
// not finite.
Learned learn(const LabProblem& problem, const MethodSettings& settings);

// Codes of a given dictionary for x: C3, from exp(-10) or, where `from` is given, from there.
// `truth`: true codes of x that a curve is scored by.
struct OptimisedCodes {
  Tiles<float> codes;
  std::map<std::string, std::vector<double>> curve;  // where settings.log_every and truth are given
};
OptimisedCodes optimised_codes(const Learned& of, const Tiles<float>& x,
                               const MethodSettings& settings, const Tiles<float>* from = nullptr,
                               const Tiles<float>* truth = nullptr);
// Codes of x by a row of eval/pursuit.h; atoms of length 0 are never chosen.
Tiles<float> pursuit_codes(std::string_view pursuit, const Learnt<float>& dictionary,
                           const Tiles<float>& x, int64_t k, double lambda);

// MSE, synthetic loss, the share of codes above 0, 1e-5, 1e-4 and 1e-3 (D4), mean |z|, latent and
// dictionary MCC (D1) and the dictionary's cosine, of the half the codes are of.
nlohmann::ordered_json scores_json(const LabProblem& problem, const MethodSettings& settings,
                                   const Learned& learned);

}  // namespace megadict
