// The total order of TopK (value descending, position ascending) as one unsigned integer: larger
// keys come first. -0 counts as +0; NaN sorts above infinity, so that it cannot hide.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace megadict {

constexpr uint32_t ordered_bits(float value) {
  if (value != value) return 0xFFFFFFFFu;  // either sign
  const uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

constexpr float from_ordered_bits(uint32_t ordered) {
  return std::bit_cast<float>(ordered & 0x80000000u ? ordered & 0x7FFFFFFFu : ~ordered);
}

constexpr uint64_t order_key(float value, uint32_t position) {
  return (static_cast<uint64_t>(ordered_bits(value)) << 32) | (0xFFFFFFFFu - position);
}

constexpr float key_value(uint64_t key) {
  return from_ordered_bits(static_cast<uint32_t>(key >> 32));
}

constexpr uint32_t key_position(uint64_t key) {
  return 0xFFFFFFFFu - static_cast<uint32_t>(key);
}

}  // namespace megadict
