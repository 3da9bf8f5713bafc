// AuxK (Gao et al. 2024, section 2.4; formats.md 1.1): dead latents learn to explain the residual.
// With e = x - x_hat detached and e_hat = the top k_aux pre-activations among the dead latents,
// after ReLU, times their decoder rows (no b_dec), the loss gets
//   alpha * sum |e - e_hat|^2 / sum |e|^2 * min(n_dead / k_aux, 1),
// both sums over the global batch, the denominator detached. Exact over shards.
#pragma once

#include "model/gradients.h"

namespace megadict {

// The dead latents of a shard, and the gradients of sum |e - e_hat|^2 (unscaled: the denominator is
// known only after the last micro-batch).
struct AuxK {
  int64_t k = 0;                       // k_aux, at most the number of dead
  at::Tensor dead_l;                   // i64, local ids, ascending
  std::vector<int64_t> dead_of_shard;  // [F]
  int64_t n_dead = 0;                  // over all shards
  RowGradients rows;                   // compact: one row per dead latent
  double error = 0, target = 0;        // my owned rows' sum |e - e_hat|^2, sum |e|^2
  bool active() const { return n_dead > 0; }
};

// `dead_mask_l`: bool, which local latents are dead. Collective over feature.
AuxK make_auxk(const Mesh& mesh, const Dictionary& dictionary, const at::Tensor& dead_mask_l,
               int64_t k_aux);

// Forward and backward of one micro-batch. Collective over feature.
void add_auxk(const Mesh& mesh, const Dictionary& dictionary, const Rows& rows, const Forward& fwd,
              AuxK& aux);

// Adds `factor` times the compact gradients to the shard's.
void merge_auxk(const AuxK& aux, double factor, Gradients& gradients);

}  // namespace megadict
