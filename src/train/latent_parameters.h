// What the activation learns of each latent besides b_enc (Dictionary::extra_l): its gradients over
// the mesh, and their update. One number a latent: every step updates and shares all of them.
//
// jumprelu's thresholds (B8): with g = dL/dz and K the rectangle of the bandwidth's width around 0,
//   dL/dtheta = -sum over tokens of (theta g + slope of the L0 penalty) K(v - theta) / bandwidth
// where no other parameter learns of K.
#pragma once

#include <vector>

#include "model/forward.h"
#include "train/state.h"

namespace megadict {

// The edges of a step's tokens (Encoded::edges), of my data row and latents.
struct Edges {
  std::vector<at::Tensor> latent, product;  // i32, f32: g of each
};

void add_edges(const Dictionary& dictionary, const Codes& edges, const at::Tensor& g_bd, Edges& to);

struct L0Penalty {
  double loss = 0, slope = 0;
};
// `weight`: model.l0_coefficient, warmed up, over var_total.
L0Penalty l0_penalty(const ModelConfig& model, double weight, double l0);

// Gradients of the own rows, in units of B times the mean gradient. Collective over data; exact
// sums over world too.
std::vector<at::Tensor> extra_gradients(const Mesh& mesh, const TrainState& state,
                                        const Edges& edges, double l0_slope, int64_t batch_rows,
                                        Sums sums);

// Returns how many gradients were not finite: what they belong to is left alone. Collective over
// data.
int64_t update_extra(const Mesh& mesh, std::span<const at::Tensor> gradients,
                     const UpdateArgs& args, TrainState& state);

}  // namespace megadict
