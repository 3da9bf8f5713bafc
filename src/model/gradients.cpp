#include "model/gradients.h"

#include <ATen/ATen.h>

#include "model/hidden.h"

namespace megadict {

RowGradients make_row_gradients(const Dictionary& dictionary, int64_t padded) {
  const auto options = dictionary.w_enc_ld.options();
  RowGradients out;
  out.w_enc_ld = at::zeros({padded, dictionary.w_enc_ld.size(1)}, options);
  out.w_dec_ld = dictionary.tied() ? out.w_enc_ld : at::zeros({padded, dictionary.d}, options);
  out.b_enc_l = at::zeros({padded}, options);
  out.input_l = at::zeros({padded}, options);
  return out;
}

void zero_gradients(RowGradients& gradients) {
  gradients.w_enc_ld.zero_();
  gradients.w_dec_ld.zero_();
  gradients.b_enc_l.zero_();
  gradients.input_l.zero_();
}

void finish_b_dec(const Dictionary& dictionary, Gradients& gradients) {
  if (has_front(dictionary.config)) return;
  const at::Tensor shares = gradients.rows.input_l.narrow(0, 0, dictionary.latents.size());
  gradients.b_dec_d -= dictionary.w_enc_ld.t().mv(shares).to(at::kDouble);
}

double l1_sum(const Dictionary& dictionary, const Codes& codes) {
  if (codes.nnz() == 0) return 0;
  const at::Tensor norm = dictionary.w_dec_ld.norm(2, 1);
  return (codes.value * norm.index_select(0, codes.latent)).sum(at::kDouble).item<double>();
}

}  // namespace megadict
