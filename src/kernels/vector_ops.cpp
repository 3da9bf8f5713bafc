#include "kernels/vector_ops.h"

#include <cmath>

#include "base/clones.h"

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

MEGADICT_CLONES void add_scaled4(float* y, const float* factor, const float* const* x, int64_t d) {
  const float f0 = factor[0], f1 = factor[1], f2 = factor[2], f3 = factor[3];
  const float *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3];
  for (int64_t i = 0; i < d; ++i) y[i] += f0 * x0[i] + f1 * x1[i] + f2 * x2[i] + f3 * x3[i];
}

RowUpdate row_update(const UpdateArgs& args) {
  const auto t = static_cast<double>(args.step);
  const bool momentum = args.kind == OptimiserKind::adam;
  return {args.kind,
          static_cast<float>(args.beta1),
          static_cast<float>(args.beta2),
          static_cast<float>(args.eps),
          static_cast<float>(args.gradient_scale),
          static_cast<float>(momentum ? args.lr / (1 - std::pow(args.beta1, t)) : args.lr),
          static_cast<float>(1.0 / std::sqrt(1 - std::pow(args.beta2, t))),
          args.unit_rows};
}

namespace {

MEGADICT_CLONES void adam_row(float* w, const float* g, float* m, float* v, int64_t d, float along,
                              const RowUpdate& u) {
  const float beta1 = u.beta1, beta2 = u.beta2, rate = u.rate, root = u.root, eps = u.eps,
              scale = u.scale;
  for (int64_t i = 0; i < d; ++i) {
    const float gradient = scale * (g[i] - along * w[i]);
    m[i] = beta1 * m[i] + (1.0f - beta1) * gradient;
    v[i] = beta2 * v[i] + (1.0f - beta2) * gradient * gradient;
    w[i] -= rate * m[i] / (std::sqrt(v[i]) * root + eps);
  }
}

MEGADICT_CLONES void adam_b1_0_row(float* w, const float* g, float* v, int64_t d, float along,
                                   float decay, const RowUpdate& u) {
  const float beta2 = u.beta2, rate = u.rate, root = u.root, eps = u.eps, scale = u.scale;
  for (int64_t i = 0; i < d; ++i) {
    const float gradient = scale * (g[i] - along * w[i]);
    v[i] = decay * v[i] + (1.0f - beta2) * gradient * gradient;
    w[i] -= rate * gradient / (std::sqrt(v[i]) * root + eps);
  }
}

MEGADICT_CLONES void sign_row(float* w, const float* g, int64_t d, float along, float rate) {
  for (int64_t i = 0; i < d; ++i) {
    const float gradient = g[i] - along * w[i];
    w[i] -= gradient > 0 ? rate : gradient < 0 ? -rate : 0.0f;
  }
}

}  // namespace

void update_row(float* w, const float* g, float* m, float* v, int64_t d, float along, float decay,
                const RowUpdate& update) {
  switch (update.kind) {
    case OptimiserKind::adam:
      return adam_row(w, g, m, v, d, along, update);
    case OptimiserKind::adam_b1_0:
      return adam_b1_0_row(w, g, v, d, along, decay, update);
    case OptimiserKind::sign_sgd:
      return sign_row(w, g, d, along, update.rate);
  }
}

void scale_to_unit(float* w, int64_t d) {
  const double norm = std::sqrt(dot(w, w, d));
  if (norm == 0) return;
  const auto factor = static_cast<float>(1.0 / norm);
  for (int64_t i = 0; i < d; ++i) w[i] *= factor;
}

MEGADICT_CLONES float largest_magnitude(const float* x, int64_t d) {
  constexpr int64_t kLanes = 16;
  float lanes[kLanes] = {};
  int64_t i = 0;
  // The larger of two is taken by a comparison that a NaN on the right wins.
  for (; i + kLanes <= d; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const float a = std::fabs(x[i + lane]);
      lanes[lane] = !(a <= lanes[lane]) ? a : lanes[lane];
    }
  float largest = 0;
  for (; i < d; ++i) {
    const float a = std::fabs(x[i]);
    largest = !(a <= largest) ? a : largest;
  }
  for (float lane : lanes) largest = lane > largest || std::isnan(lane) ? lane : largest;
  return largest;
}

MEGADICT_CLONES bool mostly_lost(const float* x, int64_t d, float inverse) {
  int32_t present = 0, lost = 0;
  for (int64_t i = 0; i < d; ++i) {
    present += x[i] != 0;
    lost += x[i] != 0 && std::fabs(x[i] * inverse) < 0.5f;
  }
  return 2 * lost > present;
}

MEGADICT_CLONES int64_t quantise(const float* x, int64_t d, float inverse, int8_t* q) {
  int32_t sum = 0;
  for (int64_t i = 0; i < d; ++i) {
    const float scaled = x[i] * inverse;
    const auto rounded = static_cast<int32_t>(scaled + (scaled < 0 ? -0.5f : 0.5f));
    q[i] = static_cast<int8_t>(rounded);
    sum += rounded;
  }
  return sum;
}

}  // namespace megadict
