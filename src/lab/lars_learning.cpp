#include "lab/lars_learning.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/philox.h"
#include "lab/dictionary_learning.h"
#include "lab/methods.h"

namespace megadict {

namespace {

Learnt<float> with_negatives(const Learnt<float>& d) {
  Learnt<float> both("D, -D", d.rows, 2 * d.cols);
  for (int64_t r = 0; r < d.rows; ++r)
    for (int64_t c = 0; c < d.cols; ++c) {
      const float value = d.value[static_cast<size_t>(r * d.cols + c)];
      both.value[static_cast<size_t>(r * both.cols + c)] = value;
      both.value[static_cast<size_t>(r * both.cols + d.cols + c)] = -value;
    }
  return both;
}

// Samples in the order of what each draws: the first ones.
Learnt<float> first_atoms(const Tiles<float>& x, const LarsLearning& s) {
  std::vector<int64_t> order(static_cast<size_t>(x.samples()));
  std::iota(order.begin(), order.end(), 0);
  const Rng rng{s.seed, Purpose::lab_init, 0};
  std::vector<double> drawn;
  for (const int64_t i : order) drawn.push_back(rng.uniform(static_cast<uint64_t>(i)));
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return drawn[static_cast<size_t>(a)] < drawn[static_cast<size_t>(b)];
  });
  Learnt<float> d("D", x.features(), s.latents);
  for (int64_t c = 0; c < s.latents; ++c)
    for (int64_t r = 0; r < x.features(); ++r)
      d.value[static_cast<size_t>(r * s.latents + c)] =
          x.at(order[static_cast<size_t>(c % x.samples())], r);
  make_columns_unit(d);
  return d;
}

}  // namespace

Tiles<float> signed_lars_codes(const Learnt<float>& dictionary, const Tiles<float>& x,
                               double lambda) {
  const int64_t n = dictionary.cols;
  const Tiles<float> both = pursuit_codes("lars", with_negatives(dictionary), x, n, lambda);
  Tiles<float> codes(x.samples(), n);
  for (int64_t i = 0; i < x.samples(); ++i)
    for (int64_t j = 0; j < n; ++j) codes.at(i, j) = both.at(i, j) - both.at(i, n + j);
  return codes;
}

Learnt<float> learn_by_lars(const Tiles<float>& x, const LarsLearning& s) {
  Learnt<float> d = first_atoms(x, s);
  double before = 0;
  for (int64_t round = 0; round < s.rounds; ++round) {
    const Tiles<float> codes = signed_lars_codes(d, x, s.lambda);
    const double now = lasso_objective(d, x, s.lambda, codes);
    if (round > 0 && std::abs(before - now) < s.still * before) break;
    before = now;
    improve_atoms(x, codes, s.seed, round, 1, d);
  }
  return d;
}

}  // namespace megadict
