// Dense layers in front of the sparse one (model.encoder = mlp | deep) and behind it
// (model.decoder = deep). Every rank holds them whole and applies them to whole rows; what they
// learn is summed over the mesh.
//
//   mlp (B3)           r = ReLU(W r + b), once for each width of model.hidden
//   deep (B4)          r = LayerNorm(tanh(W r + b)), likewise, plus x at the end: all d wide
//   deep decoder (B5)  x_hat = ReLU(h + b_hidden) W_out + b_dec with h = z W_dec; a LayerNorm after
//                      the ReLU with model.decoder_norm
//
// x, not x - b_dec, enters the layers in front.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/config.h"

namespace megadict {

enum class HiddenStart { kaiming, uniform, normal_rows, zero, one };

struct HiddenParameter {
  std::string name;  // of the tensor in files: "front.0.weight"
  std::vector<int64_t> shape;
  HiddenStart start;
  int64_t ins = 0;         // features it acts on, for kaiming and uniform
  bool decays = false;     // by optim.hidden_decay: weights of hidden layers alone
  bool unit_rows = false;  // [hidden, d]: one row a hidden feature, as the decoder's
  bool norm = false;       // LayerNorm's gain or shift
};

bool has_front(const ModelConfig& config);
bool has_back(const ModelConfig& config);
// Widths of model.hidden; exit 2 where they are none or do not fit `d` (0 = not known yet).
std::vector<int64_t> hidden_widths(const ModelConfig& config, int64_t d);
// Columns of W_enc.
int64_t encoder_width(const ModelConfig& config, int64_t d);

// In the order of Dictionary::hidden: in front, then behind. Empty for linear and tied.
std::vector<HiddenParameter> hidden_parameters(const ModelConfig& config, int64_t d);
// Zeros.
std::vector<at::Tensor> empty_hidden(const ModelConfig& config, int64_t d, at::Device device);
// Each number by (seed, parameter, place).
void draw_hidden(const ModelConfig& config, uint64_t seed, std::vector<at::Tensor>& hidden);

// `hidden`: all of the dictionary's. x [b, d] -> [b, encoder_width].
at::Tensor in_front(const ModelConfig& config, std::span<const at::Tensor> hidden,
                    const at::Tensor& x_bd);
// h [b, d] -> x_hat - b_dec [b, d].
at::Tensor behind(const ModelConfig& config, std::span<const at::Tensor> hidden,
                  const at::Tensor& h_bd);

// Adds to `gradients` (as `hidden`) what the loss's gradient says that reaches in_front()'s or
// behind()'s result for these rows; the latter returns the gradient of h.
void in_front_backward(const ModelConfig& config, std::span<const at::Tensor> hidden,
                       const at::Tensor& x_bd, const at::Tensor& d_r_be,
                       std::span<at::Tensor> gradients);
at::Tensor behind_backward(const ModelConfig& config, std::span<const at::Tensor> hidden,
                           const at::Tensor& h_bd, const at::Tensor& d_x_hat_bd,
                           std::span<at::Tensor> gradients);

}  // namespace megadict
