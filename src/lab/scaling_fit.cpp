#include "lab/scaling_fit.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/philox.h"

namespace megadict {

namespace {

double log_error(std::span<const Point> points, const auto& law) {
  double sum = 0;
  for (const Point& p : points) sum += std::pow(std::log(p.y) - std::log(law(p.x)), 2);
  return std::sqrt(sum / static_cast<double>(points.size()));
}

// Floor and factor for an exponent: relative errors 1 - (floor + factor x^-exponent) / y are linear
// in them.
struct Linear {
  double floor = 0, factor = 0, square = 0;
};

Linear best_for(std::span<const Point> points, double exponent) {
  double aa = 0, ab = 0, bb = 0, a1 = 0, b1 = 0;
  for (const Point& p : points) {
    const double a = 1 / p.y, b = std::pow(p.x / points[0].x, -exponent) / p.y;
    aa += a * a;
    ab += a * b;
    bb += b * b;
    a1 += a;
    b1 += b;
  }
  const double determinant = aa * bb - ab * ab;
  Linear out;
  if (determinant > 1e-14 * aa * bb) {
    out.floor = (a1 * bb - b1 * ab) / determinant;
    out.factor = (b1 * aa - a1 * ab) / determinant;
  }
  if (out.floor < 0 || determinant <= 1e-14 * aa * bb) out = {0, b1 / bb, 0};
  if (out.factor < 0) out = {a1 / aa, 0, 0};
  for (const Point& p : points) {
    const double y = out.floor + out.factor * std::pow(p.x / points[0].x, -exponent);
    out.square += std::pow(1 - y / p.y, 2);
  }
  return out;
}

}  // namespace

std::optional<Point> find_least(std::span<const Point> points) {
  size_t lowest = 0;
  for (size_t i = 1; i < points.size(); ++i)
    if (points[i].y < points[lowest].y) lowest = i;
  if (lowest == 0 || lowest + 1 >= points.size()) return {};
  const auto x = [&](size_t i) { return std::log(points[i].x); };
  const auto y = [&](size_t i) { return std::log(points[i].y); };
  // Newton's form through the three: y1 + slope (x - x1) + bend (x - x1)(x - x2).
  const size_t a = lowest - 1, b = lowest, c = lowest + 1;
  const double slope = (y(b) - y(a)) / (x(b) - x(a));
  const double bend = ((y(c) - y(b)) / (x(c) - x(b)) - slope) / (x(c) - x(a));
  if (!(bend > 0)) return points[lowest];
  const double at = (x(a) + x(b)) / 2 - slope / (2 * bend);
  const double least = y(a) + slope * (at - x(a)) + bend * (at - x(a)) * (at - x(b));
  return Point{std::exp(at), std::exp(least)};
}

PowerLaw fit_power_law(std::span<const Point> points) {
  const auto n = static_cast<double>(points.size());
  double x = 0, y = 0, xx = 0, xy = 0;
  for (const Point& p : points) {
    x += std::log(p.x);
    y += std::log(p.y);
    xx += std::log(p.x) * std::log(p.x);
    xy += std::log(p.x) * std::log(p.y);
  }
  PowerLaw law;
  law.exponent = (n * xy - x * y) / (n * xx - x * x);
  law.factor = std::exp((y - law.exponent * x) / n);
  law.error = log_error(points, [&](double at) { return law.factor * std::pow(at, law.exponent); });
  return law;
}

FloorLaw fit_floor_law(std::span<const Point> points) {
  constexpr double kLow = .01, kHigh = 4;
  constexpr int kGrid = 200, kSteps = 80;
  const auto square = [&](double exponent) { return best_for(points, exponent).square; };
  double best = kLow, least = std::numeric_limits<double>::infinity();
  const double ratio = std::pow(kHigh / kLow, 1.0 / kGrid);
  for (double exponent = kLow; exponent <= kHigh * 1.0001; exponent *= ratio)
    if (square(exponent) < least) least = square(exponent), best = exponent;
  // Between its neighbours of the grid, by golden sections.
  const double golden = (std::sqrt(5.0) - 1) / 2;
  double low = best / ratio, high = best * ratio;
  for (int step = 0; step < kSteps; ++step) {
    const double left = high - golden * (high - low), right = low + golden * (high - low);
    (square(left) < square(right) ? high : low) = square(left) < square(right) ? right : left;
  }
  FloorLaw law;
  law.exponent = (low + high) / 2;
  const Linear linear = best_for(points, law.exponent);
  law.floor = linear.floor;
  law.factor = linear.factor * std::pow(points[0].x, law.exponent);
  law.error = log_error(
      points, [&](double at) { return law.floor + law.factor * std::pow(at, -law.exponent); });
  return law;
}

Interval floor_interval(std::span<const Point> points, int64_t draws, uint64_t seed) {
  constexpr double kTail = .05;
  std::vector<double> floors;
  std::vector<Point> drawn(points.size());
  for (int64_t draw = 0; draw < draws; ++draw) {
    const Rng rng{seed, Purpose::lab_draw, static_cast<uint64_t>(draw)};
    for (size_t i = 0; i < points.size(); ++i)
      drawn[i] = points[static_cast<size_t>(rng.uniform(i) * static_cast<double>(points.size()))];
    floors.push_back(fit_floor_law(drawn).floor);
  }
  std::sort(floors.begin(), floors.end());
  const auto at = [&](double share) {
    return floors[static_cast<size_t>(share * static_cast<double>(floors.size() - 1))];
  };
  return {at(kTail), at(1 - kTail)};
}

}  // namespace megadict
