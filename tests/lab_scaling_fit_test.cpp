// Planted laws come back.
#include "lab/scaling_fit.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace megadict {
namespace {

std::vector<Point> planted(double floor, double factor, double exponent, double noise = 0) {
  std::vector<Point> points;
  for (int i = 0; i < 12; ++i) {
    const double x = 1e6 * std::pow(3, i);
    const double wave = 1 + noise * std::sin(7.0 * i);
    points.push_back({x, (floor + factor * std::pow(x, exponent)) * wave});
  }
  return points;
}

TEST(ScalingFit, APlantedExponentToOnePercent) {
  const PowerLaw exact = fit_power_law(planted(0, 40, -.17));
  EXPECT_NEAR(exact.exponent, -.17, 1e-12);
  EXPECT_NEAR(exact.factor, 40, 1e-9);
  EXPECT_NEAR(exact.error, 0, 1e-12);
  EXPECT_NEAR(fit_power_law(planted(0, 40, -.17, .01)).exponent, -.17, .0017);
}

TEST(ScalingFit, TheLeastOfAParabolaBetweenThePoints) {
  std::vector<Point> points;
  for (const double x : {100.0, 200.0, 400.0, 800.0}) {
    const double off = std::log(x / 250);
    points.push_back({x, .3 * std::exp(.2 * off * off)});
  }
  const std::optional<Point> least = find_least(points);
  ASSERT_TRUE(least.has_value());
  EXPECT_NEAR(least->x, 250, 1e-9);
  EXPECT_NEAR(least->y, .3, 1e-12);
  EXPECT_FALSE(find_least(std::span(points).first(2)).has_value());
}

TEST(ScalingFit, AFloorToOnePercent) {
  for (const double floor : {.05, .2, .6})
    for (const double exponent : {.15, .3, .6}) {
      const FloorLaw law = fit_floor_law(planted(floor, 40, -exponent));
      EXPECT_NEAR(law.floor, floor, .01 * floor) << floor << " " << exponent;
      EXPECT_NEAR(law.factor, 40, .4) << floor << " " << exponent;
      EXPECT_NEAR(law.exponent, exponent, .01 * exponent) << floor << " " << exponent;
    }
}

TEST(ScalingFit, NoFloorIsFoundWhereThereIsNone) {
  const FloorLaw law = fit_floor_law(planted(0, 40, -.2));
  EXPECT_LT(law.floor, 1e-3);
  EXPECT_NEAR(law.exponent, .2, 2e-3);
}

TEST(ScalingFit, TheIntervalHoldsThePlantedFloor) {
  const Interval interval = floor_interval(planted(.2, 40, -.3, .02), 100, 5);
  EXPECT_LT(interval.low, .2);
  EXPECT_GT(interval.high, .2);
  EXPECT_LT(interval.high - interval.low, .1);
  const Interval again = floor_interval(planted(.2, 40, -.3, .02), 100, 5);
  EXPECT_EQ(interval.low, again.low);
}

}  // namespace
}  // namespace megadict
