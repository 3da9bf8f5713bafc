// Power laws of loss and of the best sizes in the compute spent (K6), and one with an irreducible
// part (L2h).
#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace megadict {

struct Point {
  double x = 0, y = 0;  // both above 0
};

struct PowerLaw {
  double factor = 0, exponent = 0;  // y = factor x^exponent
  double error = 0;                 // root of the mean square of log y's error
};
// Least squares of log y in log x; at least two different x.
PowerLaw fit_power_law(std::span<const Point> points);

// Where y is least, between the points: the lowest of them and its neighbours on a parabola of log
// y in log x. Nothing where the lowest is at an end. Points by ascending x.
std::optional<Point> find_least(std::span<const Point> points);

struct FloorLaw {
  double floor = 0, factor = 0, exponent = 0;  // y = floor + factor x^-exponent
  double error = 0;                            // as above
};
// Least squares of relative errors, floor and factor not negative, exponent .01 to 4; at least
// three points.
FloorLaw fit_floor_law(std::span<const Point> points);

struct Interval {
  double low = 0, high = 0;
};
// Of the floor: the middle 90 % of fits to points drawn with replacement.
Interval floor_interval(std::span<const Point> points, int64_t draws, uint64_t seed);

}  // namespace megadict
