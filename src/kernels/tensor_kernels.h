// The operations behind kTensorKernels: plain tensor operations, on any device, contracts in
// kernel_set.h. `work_bytes` bounds the temporaries of an operation that would grow with rows times
// latents, entries times width or latents times width; what stays beside them is a few numbers per
// entry and per latent. No sum depends on the order of threads, on any device.
#pragma once

#include <algorithm>

#include "kernels/kernel_set.h"

namespace megadict {

// Bytes that a value of an encode's tile and an element of a chunk of rows in the optimiser need,
// temporaries included.
inline constexpr int64_t kTensorTileBytes = 16, kTensorRowBytes = 64;

inline constexpr int64_t kTensorWorkBytes = int64_t{256} << 20;

// Of a step on b rows of width d and l latents, at most: a tile of all rows and latents, or rows of
// all latents.
constexpr int64_t tensor_work_bytes(int64_t b, int64_t d, int64_t l) {
  return std::min(kTensorWorkBytes, std::max(kTensorTileBytes * b, kTensorRowBytes * d) * l);
}

Candidates tensor_topk(const EncodeArgs& args, int64_t k, int64_t work_bytes);
Codes tensor_above(const EncodeArgs& args, float threshold, int64_t work_bytes);
void tensor_kth(const at::Tensor& values_psc, int64_t k, at::Tensor& tau_s, at::Tensor& cut_s,
                int64_t work_bytes);
Codes tensor_keep(const Candidates& candidates, int64_t latents, const at::Tensor& tau_b,
                  const at::Tensor& cut_b, int64_t first);
at::Tensor tensor_decode(const Codes& codes, const at::Tensor& w_dec_ld);
at::Tensor tensor_decode_fixed(const Codes& codes, const at::Tensor& w_dec_ld, double up,
                               int64_t work_bytes);
LatentCodes tensor_by_latent(const Codes& codes);
at::Tensor tensor_products(const Codes& codes, const at::Tensor& x_bd, const at::Tensor& w_ld);
void tensor_row_gradients(const RowGradientArgs& args, const RowGradients& out, int64_t work_bytes);
int64_t tensor_update_rows(Parameter& parameter, const at::Tensor& g, const at::Tensor& skipped_l,
                           const UpdateArgs& args, int64_t work_bytes);
RowPassResult tensor_row_pass(std::span<const GradientSource> sources, LatentRows& rows,
                              const UpdateArgs& args, int64_t work_bytes);

at::Tensor row_starts(const at::Tensor& counts);  // i64 [counts + 1], from 0

// The set with another bound: tests take a small one, so that everything comes in many chunks.
template <int64_t kWorkBytes = kTensorWorkBytes>
constexpr KernelSet tensor_kernel_set(std::string_view name) {
  return {name,
          "plain tensor operations, any device",
          [](const EncodeArgs& args, int64_t k) { return tensor_topk(args, k, kWorkBytes); },
          [](const EncodeArgs& args, float threshold) {
            return tensor_above(args, threshold, kWorkBytes);
          },
          [](const at::Tensor& values_psc, int64_t k, at::Tensor& tau_s, at::Tensor& cut_s) {
            tensor_kth(values_psc, k, tau_s, cut_s, kWorkBytes);
          },
          tensor_keep,
          tensor_decode,
          [](const Codes& codes, const at::Tensor& w_dec_ld, double up) {
            return tensor_decode_fixed(codes, w_dec_ld, up, kWorkBytes);
          },
          tensor_by_latent,
          tensor_products,
          [](const RowGradientArgs& args, const RowGradients& out) {
            tensor_row_gradients(args, out, kWorkBytes);
          },
          [](Parameter& parameter, const at::Tensor& g, const at::Tensor& skipped_l,
             const UpdateArgs& args) {
            return tensor_update_rows(parameter, g, skipped_l, args, kWorkBytes);
          },
          [](std::span<const GradientSource> sources, LatentRows& rows, const UpdateArgs& args) {
            return tensor_row_pass(sources, rows, args, kWorkBytes);
          }};
}

}  // namespace megadict
