// b_dec's gradient with the same bits on every mesh: its two sums, over tokens and over latents, in
// fixed point (kernels/fixed_point.h).
#pragma once

#include <span>
#include <vector>

#include "kernels/fixed_point.h"
#include "train/preact.h"
#include "train/token_exchange.h"

namespace megadict {

struct ExactBDec {
  FixedPoint of_tokens, of_latents;
  bool finite = true;  // the bounds; the same on every rank
};

// `g_own`: dL/d x_hat of my own rows, a tensor for each micro-batch; `parts`: what the row pass
// will get. Collective over world.
ExactBDec bound_b_dec(const Mesh& mesh, const TrainState& state,
                      const std::vector<at::Tensor>& g_own, std::span<const BatchPart> parts,
                      double aux_factor, const Preact& preact, int64_t batch_rows);

// `of_latents_d`: i64, the row pass's share in units of of_latents. The whole gradient on rank 0 of
// the world, zeros elsewhere: fp64 [d], to be summed by whoever sums. Collective over world.
at::Tensor sum_b_dec(const Mesh& mesh, const ExactBDec& exact, const std::vector<at::Tensor>& g_own,
                     const at::Tensor& of_latents_d);

}  // namespace megadict
