// The dictionary: encoder x activation x decoder, its parameters, and this rank's shard of them.
//
// Shape suffixes, used everywhere from here on: b rows (tokens), d width, n latents, l my latents,
// k active. W_enc and W_dec are both stored [n, d], one row per latent.
//
//   v = (x - b_dec) W_enc^T + b_enc;  z = act(v);  x_hat = z W_dec + b_dec
//
// or, with hidden layers (hidden.h), v = in_front(x) W_enc^T + b_enc, x_hat = behind(z W_dec) +
// b_dec; W_enc is then [n, encoder_width].
//
// x here is the normalised row: see Normalization in data/normalization.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "base/range.h"
#include "model/config.h"

namespace megadict {

// A contiguous range of the latents of an [n, d] dictionary.
struct Dictionary {
  ModelConfig config;
  int64_t n = 0, d = 0;
  Range latents;        // the rows held here, global ids
  at::Tensor w_enc_ld;  // fp32
  at::Tensor w_dec_ld;  // fp32, unit rows where unit_rows(); the same tensor as w_enc_ld when the
                        // decoder is tied
  at::Tensor b_enc_l;   // fp32
  at::Tensor b_dec_d;   // fp32, replicated
  // What the activation learns of each latent besides: fp32 [l], in the order of
  // ActivationFn::parameters.
  std::vector<at::Tensor> extra_l = {};
  std::vector<at::Tensor> hidden = {};  // fp32, replicated: see hidden_parameters()
  // batchtopk outside training: z = v where v > threshold, one for all latents; on the way a
  // running average of the smallest code of each batch, in the end train/threshold.h. 0 = relu.
  double threshold = 0;

  bool tied() const { return config.decoder == "tied"; }
  // Decoder rows are kept at length 1.
  bool unit_rows() const { return config.decoder == "linear"; }
};

}  // namespace megadict
