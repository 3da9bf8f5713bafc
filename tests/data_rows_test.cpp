#include "data/rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace megadict {
namespace {

TEST(FirstNonFinite, FindsTheFirstAtAnyPlace) {
  for (int64_t at : {0, 1, 1023, 1024, 5000}) {
    std::vector<float> values(5001, std::numeric_limits<float>::max());
    EXPECT_EQ(first_non_finite(values.data(), DType::f32, 5001), -1);
    values[static_cast<size_t>(at)] = std::nanf("");
    values[5000] = -INFINITY;
    EXPECT_EQ(first_non_finite(values.data(), DType::f32, 5001), at);
  }
}

TEST(FirstNonFinite, KnowsEveryPatternOfTheShortTypes) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto value = static_cast<uint16_t>(bits);
    EXPECT_EQ(first_non_finite(&value, DType::f16, 1) < 0, std::isfinite(half_to_float(value)));
    EXPECT_EQ(first_non_finite(&value, DType::bf16, 1) < 0,
              std::isfinite(bfloat16_to_float(value)));
  }
}

TEST(RowNorm, IsTheSameInEveryType) {
  const std::vector<float> row = {3, -4, 12};
  EXPECT_EQ(row_norm(row.data(), DType::f32, 3), 13.0f);
  for (DType dtype : {DType::f16, DType::bf16}) {
    std::vector<uint16_t> bits;
    for (float value : row)
      bits.push_back(dtype == DType::f16 ? float_to_half(value) : float_to_bfloat16(value));
    EXPECT_EQ(row_norm(bits.data(), dtype, 3), 13.0f);
  }
}

}  // namespace
}  // namespace megadict
