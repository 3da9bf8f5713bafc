// AuxK (Gao et al. 2024, section 2.4): dead latents learn to explain the residual.
// With e = x - x_hat detached and e_hat = the top k_aux pre-activations among the dead latents,
// after ReLU, times their decoder rows (no b_dec), the loss gets
//   alpha * sum |e - e_hat|^2 / sum |e|^2 * min(n_dead / k_aux, 1),
// both sums over the global batch, the denominator detached. Exact over shards.
#pragma once

#include <array>
#include <vector>

#include "model/gradients.h"

namespace megadict {

// The dead latents of a shard, and sums over the step. The loss is known only after the last
// micro-batch, because of its denominator: until then gradients are those of sum |e - e_hat|^2.
struct AuxK {
  int64_t k = 0;                       // k_aux, at most the number that compete
  at::Tensor dead_l;                   // i64, local ids of those that compete, ascending
  std::vector<int64_t> dead_of_shard;  // [F], that compete
  int64_t n_dead = 0;                  // over all shards, competing or not
  RowGradients rows;                   // compact: one row per dead latent; see add_auxk_gradients
  Sums sums = Sums::fast;
  double error = 0, target = 0;     // my owned rows' sum |e - e_hat|^2, sum |e|^2;
  std::vector<at::Tensor> squares;  // for exact sums instead: of each row, [slot, 2] fp64
  bool active() const { return n_dead > 0; }
};

// A cheaper step, not Gao's: of more than `most` dead latents every m-th competes, in the order of
// their global ids, m the least that leaves at most `most`, from a start drawn for each step. The
// same latents on every mesh.
struct Stratum {
  int64_t most = 0;  // 0 = all dead latents compete
  uint64_t seed = 0;
  int64_t step = 0;
};

// `dead_mask_l`: bool, which local latents are dead. Collective over feature.
AuxK make_auxk(const Mesh& mesh, const at::Tensor& dead_mask_l, int64_t k_aux,
               Sums sums = Sums::fast, const Stratum& stratum = {});

// Codes of a micro-batch over the dead latents (ids 0.. in the order of dead_l), and the gradient
// of sum |e - e_hat|^2 with respect to e_hat, for all rows of the data row.
struct AuxForward {
  LatentCodes codes;
  at::Tensor g_bd;
};

// Adds to the sums of `aux`. Collective over feature.
AuxForward auxk_forward(const Mesh& mesh, const Dictionary& dictionary, const Rows& rows,
                        const Forward& fwd, AuxK& aux);

// Sums of |e - e_hat|^2 and |e|^2 over the global batch. Collective over world.
std::array<double, 2> auxk_sums(const Mesh& mesh, const AuxK& aux, int64_t batch_rows);

// Adds a micro-batch's gradients to the compact ones, then `factor` times these to the shard's.
void add_auxk_gradients(const Dictionary& dictionary, const at::Tensor& xc_bd,
                        const AuxForward& mine, AuxK& aux);
void merge_auxk(const AuxK& aux, double factor, Gradients& gradients);

}  // namespace megadict
