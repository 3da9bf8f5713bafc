// Selection, decoding and the latent-major pass on the CPU.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "base/parallel_guard.h"
#include "kernels/cpu_kernels.h"
#include "kernels/memory.h"
#include "kernels/order.h"
#include "kernels/vector_ops.h"

namespace megadict {

Codes empty_codes(int64_t rows, int64_t latents) {
  Codes codes{rows, latents, at::zeros({rows + 1}, at::kLong), {}, {}};
  codes.latent = at::empty({0}, at::kInt);
  codes.value = at::empty({0}, at::kFloat);
  return codes;
}

void cpu_kth(const at::Tensor& values_psc, int64_t k, at::Tensor& tau_s, at::Tensor& cut_s) {
  const int64_t parts = values_psc.size(0), slot = values_psc.size(1), c = values_psc.size(2);
  const float* values = values_psc.const_data_ptr<float>();
  tau_s = at::empty({slot}, at::kFloat);
  cut_s = at::empty({slot}, at::kLong);
  float* tau = tau_s.mutable_data_ptr<float>();
  int64_t* cut = cut_s.mutable_data_ptr<int64_t>();
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  const auto kth_of = [&](int64_t row, std::vector<uint64_t>& keys) {
    keys.resize(static_cast<size_t>(parts * c));
    int64_t real = 0;
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t place = 0; place < c; ++place) {
        const float v = values[(part * slot + row) * c + place];
        if (v == kNone) break;  // best first: the rest is padding
        keys[static_cast<size_t>(real++)] = order_key(v, static_cast<uint32_t>(part * c + place));
      }
    if (real < k) {
      tau[row] = kNone;
      cut[row] = kCutAll;
      return;
    }
    std::nth_element(keys.begin(), keys.begin() + (k - 1), keys.begin() + real, std::greater<>());
    tau[row] = key_value(keys[static_cast<size_t>(k - 1)]);
    cut[row] = key_position(keys[static_cast<size_t>(k - 1)]);
  };
  ParallelGuard guard;
#pragma omp parallel
  {
    std::vector<uint64_t> keys;
#pragma omp for
    for (int64_t row = 0; row < slot; ++row) guard.run([&] { kth_of(row, keys); });
  }
  guard.rethrow();
}

Codes cpu_keep(const Candidates& candidates, int64_t latents, const at::Tensor& tau_b,
               const at::Tensor& cut_b, int64_t first) {
  const int64_t rows = candidates.value.size(0), k = candidates.value.size(1);
  const float* value = candidates.value.const_data_ptr<float>();
  const int32_t* latent = candidates.latent.const_data_ptr<int32_t>();
  const float* tau = tau_b.const_data_ptr<float>();
  const int64_t* cut = cut_b.const_data_ptr<int64_t>();
  Codes codes = empty_codes(rows, latents);
  auto* start = codes.row_start.mutable_data_ptr<int64_t>();
  // Best first: what is kept is a prefix of the list.
  for (int64_t row = 0; row < rows; ++row) {
    int64_t kept = 0;
    for (; kept < k; ++kept) {
      const float v = value[row * k + kept];
      const bool beats = v > tau[row] || (v == tau[row] && first + kept <= cut[row]);
      if (!(beats || std::isnan(v)) || v <= 0) break;
    }
    start[row + 1] = start[row] + kept;
  }
  codes.latent = at::empty({start[rows]}, at::kInt);
  codes.value = at::empty({start[rows]}, at::kFloat);
  auto* out_latent = codes.latent.mutable_data_ptr<int32_t>();
  auto* out_value = codes.value.mutable_data_ptr<float>();
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t kept = start[row + 1] - start[row];
    std::copy_n(latent + row * k, kept, out_latent + start[row]);
    std::copy_n(value + row * k, kept, out_value + start[row]);
  }
  return codes;
}

namespace {

// add(row of out, value, row of w_dec) for every entry, row by row.
template <class T, class Add>
at::Tensor decoded(const Codes& codes, const at::Tensor& w_dec_ld, at::ScalarType type, Add&& add) {
  const int64_t d = w_dec_ld.size(1);
  at::Tensor out = at::zeros({codes.rows, d}, type);
  const auto* start = codes.row_start.const_data_ptr<int64_t>();
  const auto* latent = codes.latent.const_data_ptr<int32_t>();
  const auto* value = codes.value.const_data_ptr<float>();
  const float* w = w_dec_ld.const_data_ptr<float>();
  T* y = out.mutable_data_ptr<T>();
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < codes.rows; ++row)
    for (int64_t e = start[row]; e < start[row + 1]; ++e)
      add(y + row * d, value[e], w + static_cast<int64_t>(latent[e]) * d, d);
  return out;
}

}  // namespace

at::Tensor cpu_decode(const Codes& codes, const at::Tensor& w_dec_ld) {
  return decoded<float>(codes, w_dec_ld, at::kFloat, add_scaled);
}

at::Tensor cpu_decode_fixed(const Codes& codes, const at::Tensor& w_dec_ld, double up) {
  return decoded<int64_t>(codes, w_dec_ld, at::kLong,
                          [up](int64_t* y, float z, const float* w, int64_t d) {
                            add_fixed(y, up * static_cast<double>(z), w, d);
                          });
}

LatentCodes cpu_by_latent(const Codes& codes) {
  LatentCodes out{codes.rows, codes.latents, at::zeros({codes.latents + 1}, at::kLong),
                  at::empty({codes.nnz()}, at::kInt), at::empty({codes.nnz()}, at::kFloat)};
  const auto* row_start = codes.row_start.const_data_ptr<int64_t>();
  const auto* latent = codes.latent.const_data_ptr<int32_t>();
  const auto* value = codes.value.const_data_ptr<float>();
  auto* start = out.latent_start.mutable_data_ptr<int64_t>();
  auto* row_of = out.row.mutable_data_ptr<int32_t>();
  auto* value_of = out.value.mutable_data_ptr<float>();
  for (int64_t e = 0; e < codes.nnz(); ++e) ++start[latent[e] + 1];
  for (int64_t j = 0; j < codes.latents; ++j) start[j + 1] += start[j];
  Buffer<int64_t> next(codes.latents);
  std::copy_n(start, codes.latents, next.begin());
  for (int64_t row = 0; row < codes.rows; ++row)
    for (int64_t e = row_start[row]; e < row_start[row + 1]; ++e) {
      const int64_t at = next[latent[e]]++;
      row_of[at] = static_cast<int32_t>(row);
      value_of[at] = value[e];
    }
  return out;
}

at::Tensor cpu_products(const Codes& codes, const at::Tensor& x_bd, const at::Tensor& w_ld) {
  const int64_t d = w_ld.size(1);
  at::Tensor out = at::empty({codes.nnz()}, at::kFloat);
  const auto* start = codes.row_start.const_data_ptr<int64_t>();
  const auto* latent = codes.latent.const_data_ptr<int32_t>();
  const float* x = x_bd.const_data_ptr<float>();
  const float* w = w_ld.const_data_ptr<float>();
  float* product = out.mutable_data_ptr<float>();
#pragma omp parallel for schedule(dynamic, 16)
  for (int64_t row = 0; row < codes.rows; ++row)
    for (int64_t e = start[row]; e < start[row + 1]; ++e)
      product[e] = static_cast<float>(dot(x + row * d, w + int64_t{latent[e]} * d, d));
  return out;
}

void cpu_row_gradients(const RowGradientArgs& args, const RowGradients& out) {
  const int64_t d = args.w_dec_ld.size(1), seen = args.x_bd.size(1);
  const auto* start = args.codes.latent_start.const_data_ptr<int64_t>();
  const auto* row = args.codes.row.const_data_ptr<int32_t>();
  const auto* value = args.codes.value.const_data_ptr<float>();
  const float* x = args.x_bd.const_data_ptr<float>();
  const float* g = args.g_bd.defined() ? args.g_bd.const_data_ptr<float>() : nullptr;
  const float* w_dec = args.w_dec_ld.const_data_ptr<float>();
  float* grad_dec = out.w_dec_ld.mutable_data_ptr<float>();
  float* grad_enc = out.w_enc_ld.mutable_data_ptr<float>();
  float* grad_bias = out.b_enc_l.mutable_data_ptr<float>();
  float* grad_input = out.input_l.mutable_data_ptr<float>();
  const CodePath& path = args.path;
  const float* gains = path.gain_l.defined() ? path.gain_l.const_data_ptr<float>() : nullptr;
#pragma omp parallel for schedule(dynamic, 16)
  for (int64_t j = 0; j < args.codes.latents; ++j) {
    if (start[j] == start[j + 1]) continue;
    const float* w = w_dec + j * d;
    const double norm = args.l1 != 0 ? std::sqrt(dot(w, w, d)) : 0;
    const double gain = gains != nullptr ? gains[j] : 1;
    double z_sum = 0, dz_sum = 0;
    for (int64_t e = start[j]; e < start[j + 1]; ++e) {
      const float* g_row = g != nullptr ? g + static_cast<int64_t>(row[e]) * d : nullptr;
      const double dz = (g != nullptr ? dot(g_row, w, d) : 0) + args.l1 * norm;
      if (path.decoder) add_scaled(grad_dec + j * d, value[e], g_row, d);
      add_scaled(grad_enc + j * seen, static_cast<float>(gain * dz),
                 x + static_cast<int64_t>(row[e]) * seen, seen);
      z_sum += value[e];
      dz_sum += dz;
    }
    if (path.decoder && args.l1 != 0 && norm > 0)
      add_scaled(grad_dec + j * d, static_cast<float>(args.l1 * z_sum / norm), w, d);
    if (path.bias) grad_bias[j] += static_cast<float>(dz_sum);
    grad_input[j] += static_cast<float>(gain * dz_sum);
  }
}

const KernelSet kCpuKernels = {"cpu",
                               "hand-written loops, AVX-512 or AVX2 where there",
                               cpu_topk,
                               cpu_above,
                               cpu_kth,
                               cpu_keep,
                               cpu_decode,
                               cpu_decode_fixed,
                               cpu_by_latent,
                               cpu_products,
                               cpu_row_gradients,
                               cpu_update_rows,
                               cpu_row_pass};

}  // namespace megadict
