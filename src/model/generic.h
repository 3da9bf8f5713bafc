// The generic path: the dictionary's loss through autograd, dense, with two collective functions
// (identity forward / all-reduce backward, and the reverse), so that it shards like the fast path.
// It is the oracle the hand-written stages are tested against, on every mesh; it materialises b x
// l.
#pragma once

#include "model/forward.h"

namespace megadict {

struct GenericLoss {
  double loss = 0;                                  // of the global batch, all terms
  double fvu = 0;                                   // sum |x_hat - x|^2 / (B var_total)
  at::Tensor w_enc_ld, w_dec_ld, b_enc_l, b_dec_d;  // gradients, summed over the whole mesh
  std::vector<at::Tensor> extra_l;  // as Dictionary::extra_l, of logarithms with jumprelu_log
  std::vector<at::Tensor> hidden;   // as Dictionary::hidden
};

struct GenericArgs {
  double var_total = 1;
  int64_t batch_rows = 0;  // B, global
  double l1 = 0;           // coefficient, already warmed up
  double auxk_alpha = 0;   // 0 = no AuxK
  int64_t k_aux = 0;
  at::Tensor dead_l;  // bool [l], where auxk_alpha > 0
  double preact = 0;  // coefficient of train/preact.h, with dead_l
  double l0 = 0;      // coefficient, already warmed up; with model.l0_target
};

// Loss and all gradients of the mean loss over the global batch for rows that every rank holds its
// data row of. Collective over the mesh.
GenericLoss generic_loss(const Mesh& mesh, const Dictionary& dictionary, const Rows& rows,
                         const GenericArgs& args);

}  // namespace megadict
