// How a small sparse autoencoder's codes follow from what its encoder puts out: one row each, with
// its gradient and its penalty by hand (items of README.md).
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "lab/layers.h"
#include "lab/small_sae.h"

namespace megadict {

template <class T>
struct CodeArgs {
  const SaeSettings& settings;
  std::vector<Learnt<T>>& learnt;  // of the rule
  const Tiles<T>& x;               // the samples
  WeightView<const T> decoder;     // [width, latents]
  const Learnt<T>& b_dec;          // may be absent
  SaePass<T>& pass;
};

template <class T>
struct CodeRule {
  std::string_view name, item;
  std::vector<std::string_view> learnt =
      {};                     // numbers of the latents, one each, that it trains; from 0
  bool centred = false;       // the encoder sees x - b_dec
  bool encoder_bias = false;  // even without SaeSettings::bias
  bool output_bias = false;   // likewise
  bool sample_sums = false;   // its loss: sums over a sample, mean over samples (B7-B9); else means
                              // over both axes
  bool from_decoder = false;  // W_enc starts as the decoder transposed, where it is linear
  bool projects = false;      // the gradient of a unit column loses its part along the column
  // pre -> codes
  void (*encode)(const CodeArgs<T>& args) = nullptr;
  // The loss beside the reconstruction's, lambda included. Its gradient is added to d_codes, or to
  // d_pre and the rule's own; called once d_codes and d_pre are there. Null = none.
  double (*penalty)(const CodeArgs<T>& args) = nullptr;
  // Adds to d_pre, and to the rule's own gradients, what d_codes says.
  void (*backward)(const CodeArgs<T>& args) = nullptr;
};

template <class T>
const CodeRule<T>& code_rule(std::string_view name);  // exit 2 with the nearest name
std::vector<std::string_view> code_rule_names();

}  // namespace megadict
