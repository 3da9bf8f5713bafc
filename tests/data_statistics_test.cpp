#include <gmock/gmock.h>

#include <cmath>

#include "base/philox.h"
#include "data/norm_filter.h"
#include "data/normalization.h"
#include "support/shards.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::error_of;
using test::TempFolder;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr int64_t kRows = 400, kWidth = 6;

std::vector<float> sample() {
  std::vector<float> rows(kRows * kWidth);
  const Rng rng{3, Purpose::test, 0};
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(5 + 2 * rng.normals(i)[0]);
  return rows;
}

struct Measured {
  double square = 0, norm = 0, variance = 0;
};

// Of the normalised rows, straight from the definitions.
Measured measure(const std::vector<float>& rows, const Normalization& how) {
  std::vector<double> mean(kWidth), row(kWidth);
  Measured found;
  double squares_about_zero = 0;
  for (int64_t r = 0; r < kRows; ++r) {
    double square = 0;
    for (int64_t i = 0; i < kWidth; ++i) {
      const double mu = how.mean.empty() ? 0.0 : how.mean[static_cast<size_t>(i)];
      const double y = how.scale * (rows[static_cast<size_t>(r * kWidth + i)] - mu);
      square += y * y;
      mean[static_cast<size_t>(i)] += y / kRows;
    }
    squares_about_zero += square / kRows;
    found.norm += std::sqrt(square) / kRows;
  }
  found.square = squares_about_zero;
  found.variance = squares_about_zero;
  for (double m : mean) found.variance -= m * m;
  return found;
}

TEST(MeasureSample, EachNormalisationReachesItsTarget) {
  const std::vector<float> rows = sample();
  for (bool center : {false, true})
    for (double scale : {1.0, 0.25}) {
      DataConfig config;
      config.center = center;
      config.scale = scale;
      const SampleStatistics none = measure_sample(config, rows.data(), kRows, kWidth);
      EXPECT_EQ(none.normalization.scale, scale);
      EXPECT_NEAR(none.var_total, measure(rows, none.normalization).variance, 1e-5);
      config.normalize = "unit_rms";
      const SampleStatistics rms = measure_sample(config, rows.data(), kRows, kWidth);
      EXPECT_NEAR(measure(rows, rms.normalization).square, 1.0, 1e-6);
      EXPECT_NEAR(rms.var_total, measure(rows, rms.normalization).variance, 1e-6);
      config.normalize = "sqrt_d";
      const SampleStatistics root = measure_sample(config, rows.data(), kRows, kWidth);
      EXPECT_NEAR(measure(rows, root.normalization).norm, std::sqrt(6.0), 1e-6);
      EXPECT_EQ(root.normalization.mean.size(), center ? 6u : 0u);
    }
}

TEST(MeasureSample, GammaComparesMeanAndSpread) {
  const std::vector<float> rows = sample();
  const SampleStatistics found = measure_sample({}, rows.data(), kRows, kWidth);
  EXPECT_NEAR(found.gamma, 5.0 / 2.0, 0.1);
}

TEST(MeasureSample, RefusesWhatCannotBeNormalised) {
  const std::vector<float> equal(20, 3.0f);
  const Error error = error_of([&] { measure_sample({}, equal.data(), 10, 2); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.line(), HasSubstr("are equal"));
  DataConfig config;
  config.normalize = "l2";
  const std::vector<float> rows = sample();
  const Error unknown = error_of([&] { measure_sample(config, rows.data(), kRows, kWidth); });
  EXPECT_EQ(unknown.code(), ExitCode::usage);
  EXPECT_THAT(unknown.line(), HasSubstr("data.normalize is 'l2'. hint: none, unit_rms or sqrt_d"));
  config.normalize = "unit_rms";
  std::vector<float> tiny = rows;
  for (float& value : tiny) value *= 1e-38f;
  const Error beyond = error_of([&] { measure_sample(config, tiny.data(), kRows, kWidth); });
  EXPECT_EQ(beyond.code(), ExitCode::bad_data);
  EXPECT_THAT(beyond.line(), HasSubstr("beyond fp32"));
}

TEST(NormFilter, KeepsRowsUpToTheMultipleOfTheMedian) {
  const NormFilter filter = filter_by_norm({1, 2, 40, 2, 20, 3, 2}, 10);
  EXPECT_EQ(filter.median, 2);
  EXPECT_EQ(filter.dropped, 1);
  EXPECT_THAT(filter.survivors, ElementsAre(0, 1, 3, 4, 5, 6));
  EXPECT_EQ(filter_by_norm({4, 1, 3, 2}, 1).median, 2);  // the lower of the two in the middle
  const NormFilter all = filter_by_norm({1, 2, 3}, 10);
  EXPECT_EQ(all.dropped, 0);
  EXPECT_TRUE(all.survivors.empty());
  EXPECT_EQ(error_of([] { filter_by_norm({1}, 0.5); }).code(), ExitCode::usage);
}

TEST(NormFilter, SurvivorsArePartOfTheFingerprint) {
  const TempFolder folder;
  test::write_shards(folder.path(), {10, 5});
  const ShardIndex index = ShardIndex::open(folder.path());
  EXPECT_EQ(filter_by_norm(index, 0).dropped, 0);
  const NormFilter filter = filter_by_norm(index, 1.2);
  EXPECT_GT(filter.dropped, 0);
  EXPECT_EQ(fingerprint_of(index, {}), index.fingerprint());
  EXPECT_NE(fingerprint_of(index, filter.survivors), index.fingerprint());
  EXPECT_NE(fingerprint_of(index, {0, 1}), fingerprint_of(index, {0, 2}));
}

}  // namespace
}  // namespace megadict
