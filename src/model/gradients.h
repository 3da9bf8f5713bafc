// Gradients of one step, accumulated over micro-batches, in units of B times the mean gradient (so
// that Adam's eps does not depend on the batch size).
#pragma once

#include "kernels/kernel_set.h"
#include "model/forward.h"

namespace megadict {

struct Gradients {
  RowGradients rows;   // [l_padded, d] or [l_padded]; sums over my data row's tokens
  at::Tensor b_dec_d;  // fp64; my owned rows' share, see finish_b_dec()
};

// Zero gradients for a shard; `padded` >= its latents (a multiple of the data axis).
RowGradients make_row_gradients(const Dictionary& dictionary, int64_t padded);
void zero_gradients(RowGradients& gradients);

// Once, after all row gradients are in: b_dec also enters through x - b_dec, which sends it
// -sum over latents of input_l times the encoder row (W_enc sees x - b_dec; nothing where layers
// are in front).
void finish_b_dec(const Dictionary& dictionary, Gradients& gradients);

// Sum over my rows and latents of z |w_dec row|: the L1 term before its coefficient.
double l1_sum(const Dictionary& dictionary, const Codes& codes);

}  // namespace megadict
