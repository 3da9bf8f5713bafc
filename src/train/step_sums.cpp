#include "train/step_sums.h"

#include <ATen/ATen.h>

#include <cmath>

#include "model/tensor_views.h"

namespace megadict {

namespace {

constexpr int64_t kWords = 16;
constexpr double kClockUnit = 4096;  // seconds
constexpr int64_t kCountUnit = 4096;

// A double as two floats: the sum of each half is rounded, but what the first half cannot hold is
// not lost.
void put(float* two, double value) {
  two[0] = static_cast<float>(value);
  two[1] = std::isfinite(value) ? static_cast<float>(value - static_cast<double>(two[0])) : 0.0f;
}

double get(const float* two) {
  return static_cast<double>(two[0]) + static_cast<double>(two[1]);
}

}  // namespace

at::Tensor all_reduce_sums(const Mesh& mesh, const at::Tensor& b_dec_d, StepSums& sums) {
  const int64_t d = b_dec_d.size(0);
  const auto prefixes = static_cast<int64_t>(sums.prefix_squares.size());
  at::Tensor words = at::zeros({d + kWords + 2 * prefixes}, at::kFloat);
  words.narrow(0, 0, d).copy_(b_dec_d);
  float* w = words.mutable_data_ptr<float>() + d;
  put(w, sums.square);
  for (int64_t p = 0; p < prefixes; ++p)
    put(w + kWords + 2 * p, sums.prefix_squares[static_cast<size_t>(p)]);
  put(w + 2, sums.l1);
  put(w + 11, sums.gate_square);
  put(w + 13, sums.preact);
  // Exact integers while each half stays below 2^24.
  w[4] = static_cast<float>(sums.l0 / kCountUnit);
  w[5] = static_cast<float>(sums.l0 % kCountUnit);
  w[6] = sums.not_finite > 0 || !std::isfinite(sums.square) ? 1.0f : 0.0f;
  w[7] = static_cast<float>(sums.requeue);
  w[8] = static_cast<float>(sums.terminate);
  w[9] = static_cast<float>(std::floor(sums.clock_s / kClockUnit));
  w[10] = static_cast<float>(std::fmod(sums.clock_s, kClockUnit));
  at::Tensor on_device = words.to(b_dec_d.device());
  mesh.world->all_reduce(view_of(on_device), ReduceOp::sum, "step sums");
  words = on_device.to(at::kCPU);
  w = words.mutable_data_ptr<float>() + d;
  sums.square = get(w);
  for (int64_t p = 0; p < prefixes; ++p)
    sums.prefix_squares[static_cast<size_t>(p)] = get(w + kWords + 2 * p);
  sums.l1 = get(w + 2);
  sums.gate_square = get(w + 11);
  sums.preact = get(w + 13);
  sums.l0 = static_cast<int64_t>(w[4]) * kCountUnit + static_cast<int64_t>(w[5]);
  sums.not_finite = w[6];
  sums.requeue = w[7];
  sums.terminate = w[8];
  sums.clock_s = static_cast<double>(w[9]) * kClockUnit + static_cast<double>(w[10]);
  return words.narrow(0, 0, d).clone();
}

}  // namespace megadict
