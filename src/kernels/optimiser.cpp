#include "kernels/optimiser.h"

#include <array>

#include "base/error.h"

namespace megadict {

std::span<const Optimiser> all_optimisers() {
  using enum OptimiserKind;
  static const std::array<Optimiser, 3> all = {{
      {adam, "adam", "both moments, every row in every step", true, true, false},
      {adam_b1_0, "adam_b1_0", "no first moment: rows that fired, exactly", false, true, true},
      {sign_sgd, "sign_sgd", "the gradient's sign: no state", false, false, true},
  }};
  return all;
}

const Optimiser& optimiser_named(const std::string& name) {
  for (const Optimiser& optimiser : all_optimisers())
    if (optimiser.name == name) return optimiser;
  fail_agreed(ExitCode::usage, "there is no optimiser '" + name + "'", "megadict train --help");
}

}  // namespace megadict
