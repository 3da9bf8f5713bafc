// Sparse autoencoders of the seeds' size (16 latents, 8 wide): any encoder and activation of the
// seeds on a linear decoder, full batch, gradients by hand. A step costs its arithmetic, some 30 us
// at that size.
//
// Losses (items of README.md): B1 to B3 and B6 take means over both axes, B7 to B9 sums over a
// sample's entries and the mean over samples.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lab/layers.h"

namespace megadict {

struct SaeSettings {
  int64_t width = 8, latents = 16;
  std::vector<int64_t> hidden = {};  // of the encoder, each with a ReLU (B3); none = linear (B1)
  std::string activation = "relu";   // a row of code_rules.h
  bool tied = false;                 // the decoder is W_enc transposed (B2); no output bias
  bool bias = false;                 // of every layer and of the output (B10)
  bool encoder_bias = false;         // of the last encoder layer alone, from 0
  int64_t k = 3;                     // topk
  double lambda = 0.01;              // of the penalty
  bool unit_columns = true;          // before each forward pass, outside the gradient
  bool prolu_ste = true;             // prolu's gradient; false = relu's
  uint64_t seed = 0;
};

// Why these do not go together; "" where they do.
std::string problem_with(const SaeSettings& settings);

// What one pass over the samples leaves behind.
template <class T>
struct SaePass {
  Tiles<T> centred;              // x - b_dec, where the encoder sees that
  std::vector<Tiles<T>> hidden;  // after their ReLU
  Tiles<T> pre, codes, x_hat;
  Tiles<T> d_codes, d_pre, d_x_hat, d_centred;
  std::vector<Tiles<T>> d_hidden;
};

struct SaeLoss {
  double total = 0, mse = 0, penalty = 0;  // mse: mean over both axes, whatever the loss is
};

// Means over both axes: MSE + lambda |z|, of codes that are not negative. d_x_hat: of the MSE.
template <class T>
SaeLoss synthetic_loss(const Tiles<T>& x, const Tiles<T>& x_hat, const Tiles<T>& codes,
                       double lambda, Tiles<T>& d_x_hat);

template <class T>
struct CodeRule;

template <class T>
class SmallSae {
 public:
  // Exit 2 with problem_with().
  explicit SmallSae(const SaeSettings& settings);

  const SaeSettings& settings() const { return settings_; }
  // Latent j in column j, [width, latents]; empty where tied.
  const Learnt<T>& decoder() const { return decoder_; }
  const Linear<T>& encoder() const { return layers_.back(); }
  const Learnt<T>& output_bias() const { return b_dec_; }  // may be absent
  // These columns from here on; they are not trained (E2).
  void fix_decoder(std::span<const T> columns);

  // Columns made unit, where that is asked for. Precedes forward passes.
  void normalise();
  // Codes and reconstruction.
  void forward(const Tiles<T>& x, SaePass<T>& pass) const;
  // forward(), the loss and its gradients, which are overwritten.
  SaeLoss gradients(const Tiles<T>& x, SaePass<T>& pass);
  // Gradients of the encoder alone from pass.d_codes, of a loss that is somebody else's (E1).
  void encoder_gradients(const Tiles<T>& x, SaePass<T>& pass);
  // All that is trained.
  std::vector<Learnt<T>*> parameters();

 private:
  const Tiles<T>& seen_by_encoder(const Tiles<T>& x, SaePass<T>& pass) const;
  SaeLoss reconstruction(const Tiles<T>& x, SaePass<T>& pass) const;
  void decoder_gradients(SaePass<T>& pass);
  void backward_layers(const Tiles<T>& x, SaePass<T>& pass);

  SaeSettings settings_;
  const CodeRule<T>& rule_;
  std::vector<Linear<T>> layers_;  // of the encoder; the last one ends in the latents
  Learnt<T> decoder_, b_dec_;      // may be absent
  std::vector<Learnt<T>> learnt_;  // of the rule
  bool fixed_ = false;
};

}  // namespace megadict
