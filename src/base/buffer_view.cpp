#include "base/buffer_view.h"

#include <immintrin.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "base/clones.h"
#include "base/error.h"

namespace megadict {

namespace {

struct DTypeRow {
  DType dtype;
  size_t size;
  std::string_view name;
};

constexpr DTypeRow kDTypes[] = {
    {DType::f16, 2, "float16"}, {DType::bf16, 2, "bfloat16"}, {DType::f32, 4, "float32"},
    {DType::f64, 8, "float64"}, {DType::i32, 4, "int32"},     {DType::i64, 8, "int64"},
    {DType::u8, 1, "uint8"},    {DType::u16, 2, "uint16"},    {DType::u32, 4, "uint32"},
    {DType::u64, 8, "uint64"},
};

}  // namespace

size_t size_of(DType dtype) {
  return kDTypes[static_cast<int>(dtype)].size;
}

std::string_view name_of(DType dtype) {
  return kDTypes[static_cast<int>(dtype)].name;
}

// As processors convert: a NaN keeps its payload and becomes quiet.
float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1Fu, mantissa = half & 0x3FFu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  const uint32_t widened = exponent == 31 ? 0xFFu : exponent + 112;
  const uint32_t quiet = exponent == 31 && mantissa != 0 ? 0x400000u : 0;
  return std::bit_cast<float>(sign | (widened << 23) | (mantissa << 13) | quiet);
}

uint16_t float_to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7E00u);
  if (magnitude >= 65520.0f) return static_cast<uint16_t>(sign | 0x7C00u);
  if (magnitude < 0x1p-14f) {  // subnormal: the float adder rounds to nearest even for us
    return static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24f)));
  }
  const uint32_t absolute = bits & 0x7FFFFFFFu;
  const uint32_t rounded = absolute + 0xFFFu + ((absolute >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

float bfloat16_to_float(uint16_t value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}

uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

namespace {

// Eight values at a time where the processor converts halves itself.
__attribute__((target("avx,f16c"))) int64_t convert_eights(const uint16_t* from, int64_t count,
                                                           float* to) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
  }
  return i;
}

void convert_halves(const uint16_t* from, int64_t count, float* to) {
  static const bool fast = __builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c");
  int64_t i = fast ? convert_eights(from, count, to) : 0;
  for (; i < count; ++i) to[i] = half_to_float(from[i]);
}

MEGADICT_CLONES void convert_bfloat16s(const uint16_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i)
    to[i] = std::bit_cast<float>(static_cast<uint32_t>(from[i]) << 16);
}

}  // namespace

void convert_to_float(const void* from, DType dtype, int64_t count, float* to) {
  const auto* half = static_cast<const uint16_t*>(from);
  switch (dtype) {
    case DType::f32:
      std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
      return;
    case DType::f16:
      convert_halves(half, count, to);
      return;
    case DType::bf16:
      convert_bfloat16s(half, count, to);
      return;
    case DType::f64:
      for (int64_t i = 0; i < count; ++i)
        to[i] = static_cast<float>(static_cast<const double*>(from)[i]);
      return;
    default:
      fail(ExitCode::error, "cannot convert " + std::string(name_of(dtype)) + " to float32");
  }
}

}  // namespace megadict
