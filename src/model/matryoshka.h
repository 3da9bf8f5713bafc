// Matryoshka dictionaries (B12): prefixes m_1 < ... < m_G = n of the latents share the codes, and
// each of them has to reconstruct the rows alone:
//   x_hat_p = b_dec + sum over latents j < m_p of z_j d_j;  loss = sum over p of w_p |x -
//   x_hat_p|^2
// so that the latents of level p, from m_(p-1) to m_p, get the gradient of all prefixes from p on.
// Any activation; a dictionary without prefixes has one level.
#pragma once

#include <vector>

#include "base/range.h"
#include "kernels/codes.h"
#include "model/config.h"

namespace megadict {

struct Level {
  Range latents;      // global ids; a prefix ends where its last level does
  double weight = 1;  // of its prefix in the loss
};

// What model.matryoshka and model.matryoshka_weights mean for n latents; exit 2 (agreed) where they
// mean nothing.
std::vector<Level> levels_of(const ModelConfig& config, int64_t n);

// The entries of a level, `shard` being the range of the latents that the codes are over; the same
// shape, nothing copied where all are.
Codes codes_of_level(const Codes& codes, const Level& level, Range shard);
LatentCodes codes_of_level(const LatentCodes& codes, const Level& level, Range shard);

}  // namespace megadict
