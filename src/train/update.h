// From a batch's gradients to new rows, in one of two ways that differ by rounding alone:
// - in one pass over the latents (data axis 1, the batch in one piece, no clipping): codes in, rows
//   out, no gradient tensor;
// - by gradient tensors: summed over micro-batches and the data axis, clipped, then applied.
#pragma once

#include <optional>

#include "model/auxk.h"
#include "train/config.h"
#include "train/state.h"

namespace megadict {

// What the one pass needs of a batch: forward passes, and gradients with respect to x_hat.
struct BatchGradients {
  Forward fwd;
  at::Tensor g_bd;
  double l1 = 0;
  std::optional<AuxForward> aux;
};

bool fits_one_pass(const Mesh& mesh, const OptimConfig& optim, bool whole_batch);

// What a row's update needs to know besides its gradient. `scale`: from clipping.
UpdateArgs update_args(const OptimConfig& optim, double lr, int64_t step, double scale = 1);

struct UpdateResult {
  int64_t skipped = 0;  // rows whose gradient was not finite
  double square = 0;    // sum of the squares of the own rows' gradients, before clipping
};

// Adds the encoder's share to b_dec_d [d] fp64. `aux_factor` multiplies AuxK's gradients; `screen`
// (or nullptr) follows the encoder rows.
UpdateResult update_in_one_pass(const BatchGradients& batch, const AuxK& aux, double aux_factor,
                                const UpdateArgs& args, Screen* screen, TrainState& state,
                                at::Tensor& b_dec_d);

// `own`: gradients of this rank's rows, summed over the data axis.
UpdateResult update_by_tensors(const RowGradients& own, const UpdateArgs& args, TrainState& state);

void update_b_dec(const at::Tensor& gradient_d, const UpdateArgs& args, TrainState& state);

}  // namespace megadict
