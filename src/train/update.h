// From a batch's gradients to new rows, in one of two ways that differ by rounding alone:
// - in one pass over the latents, with the whole batch's codes: rows out, no gradient tensor;
// - by gradient tensors: summed over micro-batches and the data axis, clipped, then applied.
#pragma once

#include <span>
#include <string>

#include "train/config.h"
#include "train/state.h"
#include "train/token_exchange.h"

namespace megadict {

// Not where gradients cross the data axis or are clipped.
bool in_one_pass(const Mesh& mesh, const OptimConfig& optim, const std::string& exchange);

// What a row's update needs to know besides its gradient. `scale`: from clipping.
UpdateArgs update_args(const OptimConfig& optim, double lr, int64_t step, double scale = 1);

struct UpdateResult {
  int64_t skipped = 0;  // rows whose gradient was not finite
  double square = 0;    // sum of the squares of the own rows' gradients, before clipping
  at::Tensor b_dec_d;   // the encoder's share (RowPassResult); only of the one pass
};

// `parts`: of the own rows, see tokens_to_owners(). `aux_factor` multiplies AuxK's gradients;
// `more`: other gradients of the own rows; `screen` (or nullptr) follows the encoder rows.
UpdateResult update_in_one_pass(std::span<const BatchPart> parts, const AuxK& aux,
                                double aux_factor, std::span<const GradientSource> more,
                                const UpdateArgs& args, Screen* screen, TrainState& state);

// After the one pass, with data axis > 1: everybody's updated rows to everybody. `more`: as there.
// Collective over data.
void share_updates(const Mesh& mesh, const OptimConfig& optim, const AuxK& aux,
                   std::span<const BatchPart> parts, std::span<const GradientSource> more,
                   Screen* screen, TrainState& state);

// `own`: gradients of this rank's rows, summed over the data axis.
UpdateResult update_by_tensors(const RowGradients& own, const UpdateArgs& args, TrainState& state);

void update_b_dec(const at::Tensor& gradient_d, const UpdateArgs& args, TrainState& state);

}  // namespace megadict
