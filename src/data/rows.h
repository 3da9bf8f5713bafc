// Small facts about rows of raw elements (float16, bfloat16 or float32).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/buffer_view.h"

namespace megadict {

// The widest rows that a shard or a dictionary may have.
inline constexpr int64_t kMostWidth = 131072;

// Index of the first infinity or NaN among `count` elements, -1 when all are finite.
int64_t first_non_finite(const void* data, DType dtype, int64_t count);

// Euclidean norm, summed in double in order.
float row_norm(const void* row, DType dtype, int64_t width);

// "float32", "float16" or "bfloat16"; exit 2 for another name.
DType activation_dtype(const std::string& name);

// `count` values to a type that activations have, rounded to nearest even.
void convert_from_float(const float* from, int64_t count, DType dtype, void* to);

// FNV-1a over bytes, continued from `hash`: names data sets, protects nothing.
constexpr uint64_t kHashStart = 0xcbf29ce484222325;
uint64_t hash_bytes(const void* data, size_t bytes, uint64_t hash = kHashStart);
inline uint64_t hash_text(std::string_view text, uint64_t hash = kHashStart) {
  return hash_bytes(text.data(), text.size(), hash);
}

}  // namespace megadict
