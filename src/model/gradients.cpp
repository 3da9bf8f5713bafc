#include "model/gradients.h"

#include <ATen/ATen.h>

namespace megadict {

Gradients make_gradients(const Dictionary& dictionary, int64_t padded) {
  const auto options = dictionary.w_enc_ld.options();
  Gradients out;
  out.rows.w_enc_ld = at::zeros({padded, dictionary.d}, options);
  out.rows.w_dec_ld =
      dictionary.tied() ? out.rows.w_enc_ld : at::zeros({padded, dictionary.d}, options);
  out.rows.b_enc_l = at::zeros({padded}, options);
  out.b_dec_d = at::zeros({dictionary.d}, options.dtype(at::kDouble));
  return out;
}

void zero_gradients(Gradients& gradients) {
  gradients.rows.w_enc_ld.zero_();
  gradients.rows.w_dec_ld.zero_();
  gradients.rows.b_enc_l.zero_();
  gradients.b_dec_d.zero_();
}

void add_gradients(const Mesh& mesh, const Dictionary& dictionary, const Forward& fwd,
                   const at::Tensor& g_own_sd, double l1, Gradients& out) {
  const at::Tensor g_bd = gather_from_owners(mesh, g_own_sd, "residual gradient");
  const KernelSet& kernels = kernels_for(g_bd);
  kernels.row_gradients({kernels.by_latent(fwd.codes), fwd.xc_bd, g_bd, dictionary.w_dec_ld, l1},
                        out.rows);
  out.b_dec_d += g_own_sd.sum(0, false, at::kDouble);
}

void finish_b_dec(const Dictionary& dictionary, Gradients& gradients) {
  const at::Tensor shares = gradients.rows.b_enc_l.narrow(0, 0, dictionary.latents.size());
  gradients.b_dec_d -= dictionary.w_enc_ld.t().mv(shares).to(at::kDouble);
}

double l1_sum(const Dictionary& dictionary, const Codes& codes) {
  if (codes.nnz() == 0) return 0;
  const at::Tensor norm = dictionary.w_dec_ld.norm(2, 1);
  return (codes.value * norm.index_select(0, codes.latent)).sum(at::kDouble).item<double>();
}

}  // namespace megadict
