// The operations of the step that are local to a rank, as a table of kernel sets: hand-written CPU
// loops, and plain tensor operations that run on any device and serve as the reference. Shapes: b
// rows, d width, l latents of a shard; all floating-point tensors fp32 and contiguous.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <string_view>

#include "kernels/codes.h"

namespace megadict {

struct EncodeArgs {
  const at::Tensor& x_bd;  // rows with b_dec already subtracted
  const at::Tensor& w_enc_ld;
  const at::Tensor& b_enc_l;
};

// Where the latent-major pass adds its gradients.
struct RowGradients {
  at::Tensor w_dec_ld, w_enc_ld;  // the same tensor when the decoder is tied
  at::Tensor b_enc_l;             // sum over rows of dL/dv: also what b_dec gets through the input
};

struct RowGradientArgs {
  const LatentCodes& codes;
  const at::Tensor& x_bd;  // as in EncodeArgs
  const at::Tensor& g_bd;  // dL/d x_hat
  const at::Tensor& w_dec_ld;
  double l1 = 0;  // adds l1 * sum z |w_dec row|
};

struct AdamArgs {
  double lr, beta1, beta2, eps;
  double correction1, correction2;  // 1 - beta^t
  double gradient_scale = 1;
  bool unit_rows = false;  // remove the gradient along the row, renormalise after the update
};

struct KernelSet {
  std::string_view name, summary;
  // Exact top k' of v = x W_enc^T + b_enc for every row. B x l never exists.
  Candidates (*topk)(const EncodeArgs&, int64_t k);
  // All positive entries of v (relu).
  Codes (*positive)(const EncodeArgs&);
  // Lists of `parts` shards, each [slot, c] best first and padded with -inf: per row the value of
  // the k-th best entry (tau) and its position part * c + place (cut); among equal values lower
  // positions win. Fewer than k real entries: tau = -inf, cut = kCutAll.
  void (*kth)(const at::Tensor& values_psc, int64_t k, at::Tensor& tau_s, at::Tensor& cut_s);
  // Candidates that beat (tau, cut) and are positive. `first` = part * c: the position of place 0.
  Codes (*keep)(const Candidates&, int64_t latents, const at::Tensor& tau_b,
                const at::Tensor& cut_b, int64_t first);
  // sum over entries of value * w_dec row: [b, d].
  at::Tensor (*decode)(const Codes&, const at::Tensor& w_dec_ld);
  LatentCodes (*by_latent)(const Codes&);
  void (*row_gradients)(const RowGradientArgs&, const RowGradients&);
  // One Adam step on rows w with gradient g and moments m, v. A row whose gradient is not finite
  // is left alone, moments too; returns how many there were.
  int64_t (*adam_rows)(at::Tensor& w, const at::Tensor& g, at::Tensor& m, at::Tensor& v,
                       const AdamArgs&);
};

inline constexpr int64_t kCutAll = 0xFFFFFFFEll;        // every real entry is selected
inline constexpr int64_t kCutTruncated = 0xFFFFFFFFll;  // the lists were too short to tell

std::span<const KernelSet> all_kernel_sets();
// "cpu" for CPU tensors, "tensor" for others.
const KernelSet& kernels_for(const at::Tensor& like);

extern const KernelSet kCpuKernels;
extern const KernelSet kTensorKernels;

}  // namespace megadict
