// The hand-written CPU operations behind kCpuKernels; contracts in kernel_set.h.
#pragma once

#include "kernels/kernel_set.h"

namespace megadict {

Codes empty_codes(int64_t rows, int64_t latents);  // row_start allocated, no entries

Candidates cpu_topk(const EncodeArgs& args, int64_t k);
Codes cpu_above(const EncodeArgs& args, float threshold);
void cpu_kth(const at::Tensor& values_psc, int64_t k, at::Tensor& tau_s, at::Tensor& cut_s);
Codes cpu_keep(const Candidates& candidates, int64_t latents, const at::Tensor& tau_b,
               const at::Tensor& cut_b, int64_t first);
at::Tensor cpu_decode(const Codes& codes, const at::Tensor& w_dec_ld);
at::Tensor cpu_decode_fixed(const Codes& codes, const at::Tensor& w_dec_ld, double up);
LatentCodes cpu_by_latent(const Codes& codes);
at::Tensor cpu_products(const Codes& codes, const at::Tensor& x_bd, const at::Tensor& w_ld);
void cpu_row_gradients(const RowGradientArgs& args, const RowGradients& out);
int64_t cpu_update_rows(Parameter& parameter, const at::Tensor& g, const at::Tensor& skipped_l,
                        const UpdateArgs& args);
RowPassResult cpu_row_pass(std::span<const GradientSource> sources, LatentRows& rows,
                           const UpdateArgs& args);

}  // namespace megadict
