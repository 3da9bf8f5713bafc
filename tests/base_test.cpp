#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/buffer_view.h"
#include "base/error.h"
#include "base/philox.h"
#include "base/progress.h"
#include "base/range.h"

namespace megadict {
namespace {

TEST(ShardOf, CoversEverythingOnceAndDiffersByAtMostOne) {
  for (int64_t n : {0, 1, 5, 6, 4099})
    for (int64_t parts : {1, 2, 3, 4, 6, 7}) {
      int64_t next = 0;
      for (int64_t i = 0; i < parts; ++i) {
        const Range part = shard_of(n, parts, i);
        EXPECT_EQ(part.begin, next);
        EXPECT_GE(part.size(), n / parts);
        EXPECT_LE(part.size(), n / parts + 1);
        next = part.end;
      }
      EXPECT_EQ(next, n);
    }
}

TEST(Progress, SaysShareRateAndTimeLeft) {
  EXPECT_EQ(progress_text("import", 1200, 2600, "rows", 812),
            "import:  46 %, 1,200 of 2,600 rows, 812 rows/s, 0:02 left");
  EXPECT_EQ(progress_text("train", 10, 1234567, "steps", 2.345),
            "train:   0 %, 10 of 1,234,567 steps, 2.35 steps/s, 146:14:24 left");
  EXPECT_EQ(progress_text("eval", 0, 0, "rows", 0), "eval: 100 %, 0 of 0 rows");
  EXPECT_EQ(progress_text("verify", 12, 10, "MiB", 5),
            "verify: 100 %, 12 of 12 MiB, 5 MiB/s, 0:00 left");
}

// Known answers of the Random123 distribution.
TEST(Philox, MatchesKnownAnswers) {
  EXPECT_EQ(philox4x32_10({0, 0, 0, 0}, {0, 0}),
            (Philox4{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint32_t ones = 0xffffffff;
  EXPECT_EQ(philox4x32_10({ones, ones, ones, ones}, {ones, ones}),
            (Philox4{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Philox, NormalsHaveUnitVariance) {
  const Rng rng{7, Purpose::test, 3};
  double sum = 0, squares = 0;
  const int n = 100000;
  for (int i = 0; i < n; ++i)
    for (double x : rng.normals(static_cast<uint64_t>(i))) {
      sum += x;
      squares += x * x;
    }
  EXPECT_NEAR(sum / (2 * n), 0.0, 0.01);
  EXPECT_NEAR(squares / (2 * n), 1.0, 0.01);
}

TEST(Half, EveryValueSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = half_to_float(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(half_to_float(float_to_half(value))));
    } else {
      EXPECT_EQ(float_to_half(value), half);
    }
    if (!std::isnan(bfloat16_to_float(half))) {
      EXPECT_EQ(float_to_bfloat16(bfloat16_to_float(half)), half);
    }
  }
}

// The vector loops against the plain definition, bit for bit: zeros, subnormals, infinities and NaN
// of both signs included, at every place in a vector.
TEST(Half, VectorConversionEqualsTheScalarOne) {
  const struct {
    DType dtype;
    float (*scalar)(uint16_t);
  } types[] = {{DType::f16, half_to_float}, {DType::bf16, bfloat16_to_float}};
  std::vector<uint16_t> bits(0x10000);
  std::iota(bits.begin(), bits.end(), uint16_t{0});
  for (const auto& type : types)
    for (size_t first : {0, 1, 5}) {
      const size_t count = bits.size() - first - 3;
      std::vector<float> values(count + 1, -1.0f);
      convert_to_float(bits.data() + first, type.dtype, static_cast<int64_t>(count), values.data());
      for (size_t i = 0; i < count; ++i)
        ASSERT_EQ(std::bit_cast<uint32_t>(values[i]),
                  std::bit_cast<uint32_t>(type.scalar(bits[first + i])))
            << name_of(type.dtype) << " " << bits[first + i];
      EXPECT_EQ(values[count], -1.0f);
    }
}

TEST(Half, RoundsToNearestEven) {
  EXPECT_EQ(float_to_half(1.0f + 0x1p-11f), float_to_half(1.0f));
  EXPECT_EQ(float_to_half(1.0f + 3 * 0x1p-11f), float_to_half(1.0f + 4 * 0x1p-11f));
  EXPECT_EQ(half_to_float(float_to_half(1e6f)), INFINITY);
}

TEST(NearestName, SuggestsOnlyWhatIsNear) {
  const std::vector<std::string> names = {"model.k", "optim.lr", "data.batch_size"};
  EXPECT_EQ(nearest_name("optim.l", names), "optim.lr");
  EXPECT_EQ(nearest_name("data.batchsize", names), "data.batch_size");
  EXPECT_EQ(nearest_name("utterly_different", names), "");
}

TEST(Error, LineHoldsTheHint) {
  EXPECT_EQ(Error(ExitCode::usage, "k is 0", "1 or more").line(), "k is 0. hint: 1 or more");
}

}  // namespace
}  // namespace megadict
