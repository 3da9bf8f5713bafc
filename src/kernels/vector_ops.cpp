#include "kernels/vector_ops.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "kernels/fixed_point.h"

// The loops are written once and compiled for each instruction set: inlined into functions that
// carry it, so that each is vectorised with what it may use.
#define MEGADICT_BODY __attribute__((always_inline)) inline

namespace megadict {

namespace {

namespace body {

// Sixteen independent chains in fp32 per block of 512, blocks summed in fp64: vectorises without
// reordering and stays accurate for long rows.
MEGADICT_BODY double dot(const float* a, const float* b, int64_t d) {
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

MEGADICT_BODY void add_scaled(float* y, float factor, const float* x, int64_t d) {
  for (int64_t i = 0; i < d; ++i) y[i] += factor * x[i];
}

MEGADICT_BODY void add_scaled4(float* y, const float* factor, const float* const* x, int64_t d) {
  const float f0 = factor[0], f1 = factor[1], f2 = factor[2], f3 = factor[3];
  const float *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3];
  for (int64_t i = 0; i < d; ++i) y[i] += f0 * x0[i] + f1 * x1[i] + f2 * x2[i] + f3 * x3[i];
}

MEGADICT_BODY void add_fixed(int64_t* y, double factor, const float* x, int64_t d) {
  for (int64_t i = 0; i < d; ++i) y[i] += rounded(factor * static_cast<double>(x[i]));
}

MEGADICT_BODY void adam_row(float* w, const float* g, float* m, float* v, int64_t d, float along,
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

MEGADICT_BODY void adam_b1_0_row(float* w, const float* g, float* v, int64_t d, float along,
                                 float decay, const RowUpdate& u) {
  const float beta2 = u.beta2, rate = u.rate, root = u.root, eps = u.eps, scale = u.scale;
  for (int64_t i = 0; i < d; ++i) {
    const float gradient = scale * (g[i] - along * w[i]);
    v[i] = decay * v[i] + (1.0f - beta2) * gradient * gradient;
    w[i] -= rate * gradient / (std::sqrt(v[i]) * root + eps);
  }
}

MEGADICT_BODY void sign_row(float* w, const float* g, int64_t d, float along, float rate) {
  for (int64_t i = 0; i < d; ++i) {
    const float gradient = g[i] - along * w[i];
    w[i] -= gradient > 0 ? rate : gradient < 0 ? -rate : 0.0f;
  }
}

// Bits of magnitudes are ordered as integers, NaN above infinity: it is not lost to what follows.
MEGADICT_BODY float largest_magnitude(const float* x, int64_t d) {
  constexpr int64_t kLanes = 16;
  const auto magnitude = [](float value) { return std::bit_cast<int32_t>(value) & 0x7FFFFFFF; };
  int32_t lanes[kLanes] = {}, largest = 0;
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane)
      lanes[lane] = std::max(lanes[lane], magnitude(x[i + lane]));
  for (; i < d; ++i) largest = std::max(largest, magnitude(x[i]));
  for (int32_t lane : lanes) largest = std::max(largest, lane);
  return std::bit_cast<float>(largest);
}

MEGADICT_BODY bool mostly_lost(const float* x, int64_t d, float inverse) {
  int32_t present = 0, lost = 0;
  for (int64_t i = 0; i < d; ++i) {
    present += x[i] != 0;
    lost += x[i] != 0 && std::fabs(x[i] * inverse) < 0.5f;
  }
  return 2 * lost > present;
}

MEGADICT_BODY int64_t quantise(const float* x, int64_t d, float inverse, int8_t* q) {
  int32_t sum = 0;
  for (int64_t i = 0; i < d; ++i) {
    const float scaled = x[i] * inverse;
    const auto rounded = static_cast<int32_t>(scaled + (scaled < 0 ? -0.5f : 0.5f));
    q[i] = static_cast<int8_t>(rounded);
    sum += rounded;
  }
  return sum;
}

MEGADICT_BODY Fourths to_bf16(const float* x, int64_t d, float inverse, uint16_t* out) {
  constexpr int64_t kLanes = 16;
  float values[kLanes] = {}, powers[kLanes] = {};
  const auto fourth = [](float v) { return v * v * (v * v); };
  const auto one = [&](int64_t i, int64_t lane) {
    const auto bits = std::bit_cast<uint32_t>(x[i]);
    out[i] = static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
    values[lane] += fourth(x[i] * inverse);
    powers[lane] += fourth(std::bit_cast<float>(bits & 0x7F800000u) * inverse);
  };
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) one(i + lane, lane);
  for (; i < d; ++i) one(i, 0);
  Fourths sums{0, 0};
  for (float lane : values) sums.values += lane;
  for (float lane : powers) sums.powers += lane;
  return sums;
}

}  // namespace body

// The versions of one instruction set, and their row in the table.
#define MEGADICT_VECTOR_OPS(set, attributes)                                                     \
  namespace set {                                                                                \
  attributes double dot(const float* a, const float* b, int64_t d) {                             \
    return body::dot(a, b, d);                                                                   \
  }                                                                                              \
  attributes void add_scaled(float* y, float factor, const float* x, int64_t d) {                \
    body::add_scaled(y, factor, x, d);                                                           \
  }                                                                                              \
  attributes void add_scaled4(float* y, const float* factor, const float* const* x, int64_t d) { \
    body::add_scaled4(y, factor, x, d);                                                          \
  }                                                                                              \
  attributes void add_fixed(int64_t* y, double factor, const float* x, int64_t d) {              \
    body::add_fixed(y, factor, x, d);                                                            \
  }                                                                                              \
  attributes void adam_row(float* w, const float* g, float* m, float* v, int64_t d, float along, \
                           const RowUpdate& u) {                                                 \
    body::adam_row(w, g, m, v, d, along, u);                                                     \
  }                                                                                              \
  attributes void adam_b1_0_row(float* w, const float* g, float* v, int64_t d, float along,      \
                                float decay, const RowUpdate& u) {                               \
    body::adam_b1_0_row(w, g, v, d, along, decay, u);                                            \
  }                                                                                              \
  attributes void sign_row(float* w, const float* g, int64_t d, float along, float rate) {       \
    body::sign_row(w, g, d, along, rate);                                                        \
  }                                                                                              \
  attributes float largest_magnitude(const float* x, int64_t d) {                                \
    return body::largest_magnitude(x, d);                                                        \
  }                                                                                              \
  attributes bool mostly_lost(const float* x, int64_t d, float inverse) {                        \
    return body::mostly_lost(x, d, inverse);                                                     \
  }                                                                                              \
  attributes int64_t quantise(const float* x, int64_t d, float inverse, int8_t* q) {             \
    return body::quantise(x, d, inverse, q);                                                     \
  }                                                                                              \
  attributes Fourths to_bf16(const float* x, int64_t d, float inverse, uint16_t* out) {          \
    return body::to_bf16(x, d, inverse, out);                                                    \
  }                                                                                              \
  constexpr VectorOps ops = {Isa::set,          dot,         add_scaled,    add_scaled4,         \
                             add_fixed,         adam_row,    adam_b1_0_row, sign_row,            \
                             largest_magnitude, mostly_lost, quantise,      to_bf16};            \
  }

MEGADICT_VECTOR_OPS(scalar, )
#if defined(__x86_64__)
MEGADICT_VECTOR_OPS(avx2, __attribute__((target("avx2,fma"))))
MEGADICT_VECTOR_OPS(avx512, __attribute__((target("avx512f"))))
#endif

constexpr std::array kVersions = {
#if defined(__x86_64__)
    avx512::ops,
    avx2::ops,
#endif
    scalar::ops,
};

// One look-up a call: rows are short.
constexpr auto kBest = [] {
  std::array<const VectorOps*, kIsaCount> best = {};
  for (size_t isa = 0; isa < kIsaCount; ++isa)
    best[isa] = &best_available(kVersions, static_cast<Isa>(isa));
  return best;
}();

const VectorOps& ops() {
  return *kBest[static_cast<size_t>(isa_in_use())];
}

}  // namespace

std::span<const VectorOps> all_vector_ops() {
  return kVersions;
}

const VectorOps& best_vector_ops(Isa isa) {
  return best_available(kVersions, isa);
}

double dot(const float* a, const float* b, int64_t d) {
  return ops().dot(a, b, d);
}

void add_scaled(float* y, float factor, const float* x, int64_t d) {
  ops().add_scaled(y, factor, x, d);
}

void add_scaled4(float* y, const float* factor, const float* const* x, int64_t d) {
  ops().add_scaled4(y, factor, x, d);
}

void add_fixed(int64_t* y, double factor, const float* x, int64_t d) {
  ops().add_fixed(y, factor, x, d);
}

float largest_magnitude(const float* x, int64_t d) {
  return ops().largest_magnitude(x, d);
}

bool mostly_lost(const float* x, int64_t d, float inverse) {
  return ops().mostly_lost(x, d, inverse);
}

int64_t quantise(const float* x, int64_t d, float inverse, int8_t* q) {
  return ops().quantise(x, d, inverse, q);
}

Fourths to_bf16(const float* x, int64_t d, float inverse, uint16_t* out) {
  return ops().to_bf16(x, d, inverse, out);
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

void update_row(float* w, const float* g, float* m, float* v, int64_t d, float along, float decay,
                const RowUpdate& update) {
  switch (update.kind) {
    case OptimiserKind::adam:
      return ops().adam_row(w, g, m, v, d, along, update);
    case OptimiserKind::adam_b1_0:
      return ops().adam_b1_0_row(w, g, v, d, along, decay, update);
    case OptimiserKind::sign_sgd:
      return ops().sign_row(w, g, d, along, update.rate);
  }
}

void scale_to_unit(float* w, int64_t d) {
  const double norm = std::sqrt(dot(w, w, d));
  if (norm == 0) return;
  const auto factor = static_cast<float>(1.0 / norm);
  for (int64_t i = 0; i < d; ++i) w[i] *= factor;
}

}  // namespace megadict
