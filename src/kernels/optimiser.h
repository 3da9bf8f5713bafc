// The optimisers: how a row of parameters moves. A closed list; tests loop over it. Facts here, the
// arithmetic in the kernel sets (`update_rows`, `row_pass`).
//
// adam        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  w -= lr m^ / (sqrt(v^) + eps)
// adam_b1_0   the same with b1 = 0, no m. A step without gradient moves nothing and only decays v,
//             so a row is not touched until its next gradient: v <- b2^skipped v then. Equal to
//             dense Adam(0, b2) up to rounding.
// sign_sgd    w -= lr sign(g); no state.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace megadict {

enum class OptimiserKind { adam, adam_b1_0, sign_sgd };

struct Optimiser {
  OptimiserKind kind;
  std::string_view name, summary;
  bool first_moment, second_moment;
  bool lazy;  // a row without gradient needs no work
};

std::span<const Optimiser> all_optimisers();
const Optimiser& optimiser_named(const std::string& name);

struct UpdateArgs {
  OptimiserKind kind = OptimiserKind::adam;
  double lr = 0, beta1 = 0, beta2 = 0, eps = 0;
  int64_t step = 1;           // of this update; the first is 1 (bias correction)
  double gradient_scale = 1;  // every gradient is multiplied by it first
  bool unit_rows = false;     // remove the gradient along the row, renormalise after the update
  double b_dec_up = 0;        // row_pass: b_dec's share in fixed point; 0 = in fp64
};

}  // namespace megadict
