#include "eval/inference_lambda.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "eval/pursuit_rows.h"
#include "kernels/kernel_set.h"
#include "model/exact_sums.h"

namespace megadict {

double first_lambda(const Mesh& mesh, const InferenceRows& rows) {
  const int64_t mine = rows.x_bd.size(0), d = rows.x_bd.size(1);
  at::Tensor rest = at::empty_like(rows.x_bd);
  const auto* start = rows.encoder.row_start.const_data_ptr<int64_t>();
  for (int64_t r = 0; r < mine; ++r) {
    RowCode code;
    for (int64_t e = start[r]; e < start[r + 1]; ++e) {
      code.atom.push_back(rows.encoder.latent.const_data_ptr<int32_t>()[e]);
      code.value.push_back(rows.encoder.value.const_data_ptr<float>()[e]);
    }
    write_residual(rows.x_bd.const_data_ptr<float>() + r * d, code,
                   rows.atoms_nd.const_data_ptr<float>(), d,
                   rest.mutable_data_ptr<float>() + r * d);
  }
  const at::Tensor bias = at::zeros({rows.atoms_nd.size(0)}, rest.options());
  const at::Tensor largest = kernels_for(rest).topk({rest, rows.atoms_nd, bias}, 1).value;
  const double sum =
      exact_sum(mesh, largest.to(at::kDouble).clamp_min(0), rows.total, "correlations")
          .item<double>();
  return std::max(sum / static_cast<double>(rows.total),
                  static_cast<double>(std::numeric_limits<float>::min()));
}

namespace {

// A lambda that was tried, in logarithms: where L0 is as wanted, `above` is 0.
struct Tried {
  double log_lambda, above;
};

// Between two of unlike sign, by the line through them; the end that stays twice counts half
// (Illinois), and the step keeps off the ends.
double between(const Tried& low, const Tried& high) {
  constexpr double kOff = 0.05;
  const double width = high.log_lambda - low.log_lambda;
  const double share = low.above / (low.above - high.above);
  return low.log_lambda + width * std::clamp(share, kOff, 1 - kOff);
}

}  // namespace

LambdaSearch lambda_of_l0(double target, double first,
                          const std::function<double(double)>& mean_l0) {
  constexpr double kNear = 1e-3, kLeast = 1e-6, kStep = 1.3, kNarrow = 1e-6;
  constexpr size_t kTries = 24;
  const double furthest = std::log(64.0);
  LambdaSearch found;
  double nearest = std::numeric_limits<double>::infinity(), log_lambda = std::log(first);
  std::optional<Tried> low, high;  // L0 above, below the target
  bool was_low = false;
  for (size_t tries = 0; tries < kTries; ++tries) {
    const double l0 = mean_l0(std::exp(log_lambda));
    const Tried tried = {log_lambda, std::log(std::max(l0, kLeast) / target)};
    if (std::abs(l0 - target) < nearest) {
      nearest = std::abs(l0 - target);
      found = {std::exp(log_lambda), tries};
    }
    if (nearest <= kNear * target) break;
    const bool is_low = tried.above > 0;
    std::optional<Tried>& same = is_low ? low : high;
    std::optional<Tried>& other = is_low ? high : low;
    const bool again = same.has_value() && was_low == is_low;
    same = tried;
    was_low = is_low;
    if (!other) {  // a bit further than a slope of -1 says
      log_lambda += std::clamp(kStep * tried.above, -furthest, furthest);
      continue;
    }
    if (again) other->above /= 2;
    if (high->log_lambda - low->log_lambda < kNarrow) break;
    log_lambda = between(*low, *high);
  }
  return found;
}

}  // namespace megadict
