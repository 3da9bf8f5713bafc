#include "kernels/vector_ops.h"

#include <cmath>

#define MEGADICT_CLONES __attribute__((target_clones("avx512f", "avx2,fma", "default")))

namespace megadict {

// Sixteen independent chains in fp32 per block of 512, blocks summed in fp64: vectorises without
// reordering and stays accurate for long rows.
MEGADICT_CLONES double dot(const float* a, const float* b, int64_t d) {
  constexpr int64_t kLanes = 16, kBlock = 512;
  double total = 0;
  for (int64_t base = 0; base < d; base += kBlock) {
    const int64_t end = base + kBlock < d ? base + kBlock : d;
    float lanes[kLanes] = {};
    int64_t i = base;
    for (; i + kLanes <= end; i += kLanes)
      for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
    double sum = 0;
    for (; i < end; ++i) sum += static_cast<double>(a[i]) * b[i];
    for (float lane : lanes) sum += lane;
    total += sum;
  }
  return total;
}

MEGADICT_CLONES void add_scaled(float* y, float factor, const float* x, int64_t d) {
  for (int64_t i = 0; i < d; ++i) y[i] += factor * x[i];
}

MEGADICT_CLONES void adam_row(float* w, const float* g, float* m, float* v, int64_t d, float along,
                              const AdamArgs& args) {
  const auto beta1 = static_cast<float>(args.beta1), beta2 = static_cast<float>(args.beta2);
  const auto step = static_cast<float>(args.lr / args.correction1);
  const auto root = static_cast<float>(1.0 / std::sqrt(args.correction2));
  const auto eps = static_cast<float>(args.eps), scale = static_cast<float>(args.gradient_scale);
  for (int64_t i = 0; i < d; ++i) {
    const float gradient = scale * (g[i] - along * w[i]);
    m[i] = beta1 * m[i] + (1.0f - beta1) * gradient;
    v[i] = beta2 * v[i] + (1.0f - beta2) * gradient * gradient;
    w[i] -= step * m[i] / (std::sqrt(v[i]) * root + eps);
  }
}

void scale_to_unit(float* w, int64_t d) {
  const double norm = std::sqrt(dot(w, w, d));
  if (norm == 0) return;
  const auto factor = static_cast<float>(1.0 / norm);
  for (int64_t i = 0; i < d; ++i) w[i] *= factor;
}

}  // namespace megadict
