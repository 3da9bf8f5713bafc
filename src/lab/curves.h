// Curves of one number over another, as means of a group over lambda or k: to be compared at equal
// sparsity.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lab/experiment.h"

namespace megadict {

using Curve = std::vector<std::pair<double, double>>;  // by ascending x

// Means of `x` and `y` of the groups that were run.
Curve curve_of(const LabResults& results, std::span<const std::string> groups, const std::string& x,
               const std::string& y);
// The same with the logarithm of y, for errors.
Curve log_curve_of(const LabResults& results, std::span<const std::string> groups,
                   const std::string& x, const std::string& y);

// Linear between the points; nothing outside of them.
std::optional<double> value_at(const Curve& curve, double x);
// exp of that, of a curve of logarithms.
std::optional<double> exp_at(const Curve& log_curve, double x);

}  // namespace megadict
