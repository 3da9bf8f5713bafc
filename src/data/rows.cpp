#include "data/rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "base/clones.h"
#include "base/error.h"

namespace megadict {

namespace {

// A number is not finite when all bits of its exponent are set. The blocks have no early exit, so
// that the compiler makes vector code of the usual case.
template <class Bits>
inline __attribute__((always_inline)) int64_t first_with_full_exponent(const void* data,
                                                                       int64_t count,
                                                                       Bits exponent) {
  constexpr int64_t kBlock = 1024;
  const auto* bits = static_cast<const Bits*>(data);
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(count, begin + kBlock);
    Bits any = 0;
    for (int64_t i = begin; i < end; ++i)
      any |= static_cast<Bits>((bits[i] & exponent) == exponent ? 1 : 0);
    if (any == 0) continue;
    for (int64_t i = begin; i < end; ++i)
      if ((bits[i] & exponent) == exponent) return i;
  }
  return -1;
}

MEGADICT_CLONES int64_t first_non_finite_32(const void* data, int64_t count) {
  return first_with_full_exponent<uint32_t>(data, count, 0x7F800000u);
}

MEGADICT_CLONES int64_t first_non_finite_16(const void* data, int64_t count, uint16_t exponent) {
  return first_with_full_exponent<uint16_t>(data, count, exponent);
}

template <class Element, class ToFloat>
float norm_of(const void* row, int64_t width, ToFloat to_float) {
  const auto* values = static_cast<const Element*>(row);
  double sum = 0;
  for (int64_t i = 0; i < width; ++i) {
    const double value = to_float(values[i]);
    sum += value * value;
  }
  return static_cast<float>(std::sqrt(sum));
}

[[noreturn]] void refuse(DType dtype) {
  fail(ExitCode::error, "rows of " + std::string(name_of(dtype)) + " are not activations");
}

}  // namespace

int64_t first_non_finite(const void* data, DType dtype, int64_t count) {
  switch (dtype) {
    case DType::f32:
      return first_non_finite_32(data, count);
    case DType::f16:
      return first_non_finite_16(data, count, 0x7C00);
    case DType::bf16:
      return first_non_finite_16(data, count, 0x7F80);
    default:
      refuse(dtype);
  }
}

float row_norm(const void* row, DType dtype, int64_t width) {
  switch (dtype) {
    case DType::f32:
      return norm_of<float>(row, width, [](float x) { return x; });
    case DType::f16:
      return norm_of<uint16_t>(row, width, half_to_float);
    case DType::bf16:
      return norm_of<uint16_t>(row, width, bfloat16_to_float);
    default:
      refuse(dtype);
  }
}

DType activation_dtype(const std::string& name) {
  for (DType dtype : {DType::f32, DType::f16, DType::bf16})
    if (name == name_of(dtype)) return dtype;
  fail(ExitCode::usage, "dtype is '" + name + "'", "float32, float16 or bfloat16");
}

void convert_from_float(const float* from, int64_t count, DType dtype, void* to) {
  auto* bits = static_cast<uint16_t*>(to);
  switch (dtype) {
    case DType::f32:
      std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
      return;
    case DType::f16:
      for (int64_t i = 0; i < count; ++i) bits[i] = float_to_half(from[i]);
      return;
    case DType::bf16:
      for (int64_t i = 0; i < count; ++i) bits[i] = float_to_bfloat16(from[i]);
      return;
    default:
      refuse(dtype);
  }
}

uint64_t hash_bytes(const void* data, size_t bytes, uint64_t hash) {
  const auto* next = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < bytes; ++i) hash = (hash ^ next[i]) * 0x100000001b3u;
  return hash;
}

}  // namespace megadict
