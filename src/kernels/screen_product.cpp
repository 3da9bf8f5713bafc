#include "kernels/screen_product.h"

#include <array>
#include <bit>
#include <cmath>

#include "kernels/vector_ops.h"

namespace megadict {

namespace {

// Beyond these a sum's terms may be flushed to zero or overflow.
constexpr float kLeastBf16 = 1e-15f, kMostBf16 = 1e15f;
constexpr double kBf16Step = 0x1p-7;  // of 1; a step is at most this part of its element

PackedRow pack_int8(const float* row, int64_t d, uint8_t* to) {
  const float largest = largest_magnitude(row, d), inverse = largest > 0 ? 127 / largest : 1.0f;
  const auto norm = static_cast<float>(std::sqrt(dot(row, row, d)));
  if (!std::isfinite(largest) || !std::isfinite(norm) || !std::isfinite(inverse) ||
      !std::isfinite(norm * inverse) || mostly_lost(row, d, inverse))
    return {};
  PackedRow out{true, 1 / inverse, 1 / inverse, norm, 0};
  out.sum = static_cast<int32_t>(quantise(row, d, inverse, reinterpret_cast<int8_t*>(to)));
  return out;
}

PackedRow pack_bf16(const float* row, int64_t d, uint8_t* to) {
  const float largest = largest_magnitude(row, d);
  if (largest != 0 && !(largest >= kLeastBf16 && largest <= kMostBf16)) return {};
  const Fourths sums =
      to_bf16(row, d, largest > 0 ? 1 / largest : 1.0f, reinterpret_cast<uint16_t*>(to));
  const auto root = [largest](double fourth) {
    return largest * static_cast<float>(std::sqrt(std::sqrt(fourth)));
  };
  return {true, 1.0f, static_cast<float>(kBf16Step) * root(sums.powers), root(sums.values), 0};
}

constexpr std::array kProducts = {
    ScreenProduct{ScreenKind::int8, "screen_int8", "int8", 1, 128, 0, pack_int8,
                  [](int32_t sum, float step, float shift) {
                    return static_cast<double>(step) * sum + static_cast<double>(shift);
                  },
                  [](float, float size) { return static_cast<double>(size); }},
    // The tile takes a row of w's step for the largest it may be.
    ScreenProduct{
        ScreenKind::bf16, "screen_bf16", "bf16", 2, 0, 0x1p-23, pack_bf16,
        [](int32_t sum, float, float) { return static_cast<double>(std::bit_cast<float>(sum)); },
        [](float step, float size) { return std::hypot(step, kBf16Step * size); }},
};

}  // namespace

std::span<const ScreenProduct> all_screen_products() {
  return kProducts;
}

const ScreenProduct& screen_product(ScreenKind kind) {
  return kProducts[static_cast<size_t>(kind)];
}

const ScreenProduct* screen_named(std::string_view encode) {
  for (const ScreenProduct& product : kProducts)
    if (product.name == encode) return &product;
  return nullptr;
}

}  // namespace megadict
