#include "lab/gradient_codes.h"

#include <gmock/gmock.h>

#include <cmath>

#include "base/philox.h"

namespace megadict {
namespace {

Tiles<double> samples_of(const Learnt<double>& dictionary, int64_t samples) {
  Tiles<double> codes(samples, dictionary.cols), x(samples, dictionary.rows);
  const Rng rng{5, Purpose::test, 0};
  for (int64_t i = 0; i < samples; ++i)
    for (int64_t j = 0; j < dictionary.cols; ++j)
      codes.at(i, j) = std::abs(rng.normals(static_cast<uint64_t>(i), static_cast<uint32_t>(j))[0]);
  multiply(dictionary.view(), nullptr, codes, x);
  return x;
}

Learnt<double> unit_dictionary(int64_t width, int64_t latents) {
  Learnt<double> d("D", width, latents);
  draw_normal(d, 9, 0);
  make_columns_unit(d);
  return d;
}

TEST(GradientCodes, ExponentialIsThatOfTheLibrary) {
  std::vector<float> x, y;
  for (float value = -86; value < 87; value += 0.0137f) x.push_back(value);
  x.insert(x.end(), {0.0f, -10.0f, 1e-30f});
  y.resize(x.size());
  exponentiate(std::span<const float>(x), std::span<float>(y));
  for (size_t i = 0; i < x.size(); ++i)
    EXPECT_NEAR(y[i] / std::exp(static_cast<double>(x[i])), 1, 3e-7) << x[i];
}

TEST(GradientCodes, FirstStepGoesDownTheGradientOfTheLog) {
  const Learnt<double> d = unit_dictionary(4, 6);
  const Tiles<double> x = samples_of(d, 16);
  const CodeSettings settings{.width = 4, .latents = 6, .lambda = 0.2, .first_log = -0.5};
  const auto loss_at = [&](double log) {
    GradientCodes<double> codes({.width = 4, .latents = 6, .lambda = 0.2, .first_log = log}, 16, d,
                                {});
    return codes.step(x, 0.01).total;
  };
  GradientCodes<double> codes(settings, 16, d, {});
  const double before = codes.step(x, 1e-3).total, after = codes.step(x, 1e-3).total;
  EXPECT_DOUBLE_EQ(before, loss_at(-0.5));
  EXPECT_LT(after, before);
  for (const double z : codes.codes().values())
    EXPECT_NEAR(std::abs(std::log(z) + 0.5), 2e-3, 1e-3);  // two steps of Adam, near its rate each
}

TEST(GradientCodes, WarmStartHasTheCodesItIsGiven) {
  const Learnt<double> d = unit_dictionary(4, 6);
  Tiles<double> z(16, 6);
  z.at(3, 2) = 1.5;
  GradientCodes<double> codes({.width = 4, .latents = 6}, 16, d, {});
  codes.start_from(z);
  EXPECT_NEAR(codes.codes().at(3, 2), 1.5, 1e-9);
  EXPECT_NEAR(codes.codes().at(0, 0), 1e-10, 1e-15);
}

TEST(GradientCodes, AGivenDictionaryStaysAndItsOwnStaysUnit) {
  const Learnt<double> d = unit_dictionary(4, 6);
  const Tiles<double> x = samples_of(d, 32);
  GradientCodes<double> of_given({.width = 4, .latents = 6}, 32, d, {});
  GradientCodes<double> with_own({.width = 4, .latents = 6, .output_bias = true, .seed = 1}, 32);
  const std::vector<double> own = with_own.dictionary().value;
  double first = 0, last = 0;
  for (int t = 0; t < 300; ++t) {
    of_given.step(x, 0.01);
    last = with_own.step(x, 0.01).total;
    if (t == 0) first = last;
  }
  EXPECT_EQ(of_given.dictionary().value, d.value);
  EXPECT_NE(with_own.dictionary().value, own);
  EXPECT_TRUE(with_own.bias().present());
  EXPECT_LT(last, first);
}

}  // namespace
}  // namespace megadict
