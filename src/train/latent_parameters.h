// What the activation learns of each latent besides b_enc (Dictionary::extra_l): its gradients over
// the mesh, and their update. One number a latent: every step updates and shares all of them.
//
// jumprelu's thresholds (B8): with g = dL/dz and K the rectangle of the bandwidth's width around 0,
//   dL/dtheta = -sum over tokens of (theta g + slope of the L0 penalty) K(v - theta) / bandwidth
// where no other parameter learns of K; with model.jumprelu_log it is log theta that is
// learnt, with theta times that. gated's magnitudes (B7): with s = <dL/d x_hat, W_dec row>
// of each code z = e^r y + b_mag,
//   dL/db_mag = sum over codes of s;  dL/dr = sum of s (z - b_mag)
// Either needs two sums over tokens of each latent.
#pragma once

#include <vector>

#include "model/forward.h"
#include "train/state.h"

namespace megadict {

// Terms of the two sums, of a step's tokens of my data row and latents. With train/preact.h a third
// counts codes.
struct LatentTerms {
  int64_t sums = 2;
  std::vector<at::Tensor> latent, term_ec;  // i32 [e], f32 [e, 2 or 3]
};

// jumprelu: g and 1 of each edge (Encoded::edges). gated: s and s z of each code.
void add_edges(const Dictionary& dictionary, const Codes& edges, const at::Tensor& g_bd,
               LatentTerms& to);
void add_magnitudes(const Dictionary& dictionary, const Codes& codes, const at::Tensor& g_bd,
                    LatentTerms& to);

struct L0Penalty {
  double loss = 0, slope = 0;
};
// `weight`: model.l0_coefficient, warmed up, over var_total.
L0Penalty l0_penalty(const ModelConfig& model, double weight, double l0);

// What else a step says about jumprelu's thresholds.
struct ThresholdPull {
  double l0_slope = 0;
  double preact = 0;  // Preact::weight, with the third sum
  at::Tensor norm_l;  // Preact::norm_l
};

// Gradients of the own rows, in units of B times the mean gradient. Collective over data; exact
// sums over world too.
std::vector<at::Tensor> extra_gradients(const Mesh& mesh, const TrainState& state,
                                        const LatentTerms& terms, const ThresholdPull& pull,
                                        int64_t batch_rows, Sums sums);

// Returns how many gradients were not finite: what they belong to is left alone. Collective over
// data.
int64_t update_extra(const Mesh& mesh, std::span<const at::Tensor> gradients,
                     const UpdateArgs& args, TrainState& state);

}  // namespace megadict
