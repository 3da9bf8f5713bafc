#include "lab/curves.h"

#include <algorithm>
#include <cmath>

namespace megadict {

Curve curve_of(const LabResults& results, std::span<const std::string> groups, const std::string& x,
               const std::string& y) {
  Curve curve;
  for (const std::string& group : groups)
    if (results.has(group)) curve.emplace_back(results.mean(group, x), results.mean(group, y));
  std::sort(curve.begin(), curve.end());
  return curve;
}

Curve log_curve_of(const LabResults& results, std::span<const std::string> groups,
                   const std::string& x, const std::string& y) {
  Curve curve = curve_of(results, groups, x, y);
  for (auto& point : curve) point.second = std::log(point.second);
  return curve;
}

std::optional<double> value_at(const Curve& curve, double x) {
  for (size_t i = 1; i < curve.size(); ++i) {
    const auto [a, from] = curve[i - 1];
    const auto [b, to] = curve[i];
    if (a <= x && x <= b && a < b) return from + (to - from) * (x - a) / (b - a);
  }
  return {};
}

std::optional<double> exp_at(const Curve& log_curve, double x) {
  const std::optional<double> found = value_at(log_curve, x);
  return found ? std::optional(std::exp(*found)) : std::nullopt;
}

}  // namespace megadict
