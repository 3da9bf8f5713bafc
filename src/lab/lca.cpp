#include "lab/lca.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/error.h"

namespace megadict {

namespace {

// Of every sample: codes, D a - x, and the objective.
template <class T>
struct LcaPoint {
  Tiles<T> u, a, rest;
  std::vector<T> j;
};

template <class T>
struct LcaProblem {
  const Learnt<T>& dictionary;
  const Tiles<T>& x;
  double lambda;
  const LcaSettings& settings;
};

size_t lanes(int64_t features) {
  return static_cast<size_t>(features * kLane);
}

// The sum over a sample's features of f(value), for each lane of a tile.
template <class T, class F>
void sum_lanes(const T* tile, int64_t features, T* sums, F&& f) {
  for (int64_t i = 0; i < features; ++i)
    for (int64_t lane = 0; lane < kLane; ++lane) sums[lane] += f(tile[i * kLane + lane]);
}

template <class T>
void finish_point(const LcaProblem<T>& p, LcaPoint<T>& point) {
  const int64_t width = p.x.features(), latents = p.dictionary.cols;
  fit(point.a, p.x.samples(), latents);
  fit(point.rest, p.x.samples(), width);
  point.j.assign(static_cast<size_t>(p.x.samples()), T{0});
  for (size_t i = 0; i < point.u.values().size(); ++i)
    point.a.values()[i] = point.u.values()[i] > 0 ? point.u.values()[i] : T{0};
  multiply(p.dictionary.view(), static_cast<const T*>(nullptr), point.a, point.rest);
  for (size_t i = 0; i < p.x.values().size(); ++i) point.rest.values()[i] -= p.x.values()[i];
  const double of_square = p.settings.sum_j ? 0.5 : 1 / static_cast<double>(width);
  const double of_code = p.settings.sum_j ? p.lambda : p.lambda / static_cast<double>(latents);
  for (int64_t t = 0; t < p.x.tiles(); ++t) {
    T squares[kLane] = {}, sums[kLane] = {};
    sum_lanes(point.rest.tile(t), width, squares, [](T v) { return v * v; });
    sum_lanes(point.a.tile(t), latents, sums, [](T v) { return v; });
    for (int64_t lane = 0; lane < kLane; ++lane)
      point.j[static_cast<size_t>(t * kLane + lane)] =
          static_cast<T>(of_square) * squares[lane] + static_cast<T>(of_code) * sums[lane];
  }
}

// u - step du, the step a sample's own times `factor`.
template <class T>
void move_point(const LcaProblem<T>& p, const LcaPoint<T>& from, const Tiles<T>& du,
                const std::vector<T>& step, T factor, LcaPoint<T>& to) {
  fit(to.u, p.x.samples(), p.dictionary.cols);
  for (int64_t t = 0; t < p.x.tiles(); ++t)
    for (size_t i = 0; i < lanes(p.dictionary.cols); ++i)
      to.u.tile(t)[i] = from.u.tile(t)[i] -
                        factor * step[static_cast<size_t>(t) * kLane + i % kLane] * du.tile(t)[i];
  finish_point(p, to);
}

// The samples of `other` that have the smaller J.
template <class T>
void keep_better(LcaPoint<T>& kept, const LcaPoint<T>& other, std::vector<T>& step) {
  const auto copy = [&](Tiles<T>& to, const Tiles<T>& from, size_t sample) {
    for (int64_t f = 0; f < to.features(); ++f)
      to.at(static_cast<int64_t>(sample), f) = from.at(static_cast<int64_t>(sample), f);
  };
  for (size_t s = 0; s < kept.j.size(); ++s) {
    const bool is_better = other.j[s] < kept.j[s];
    step[s] *= is_better ? T{2} : T{0.5};
    if (!is_better) continue;
    copy(kept.u, other.u, s);
    copy(kept.a, other.a, s);
    copy(kept.rest, other.rest, s);
    kept.j[s] = other.j[s];
  }
}

// The largest eigenvalue of D^T D, from below.
template <class T>
double largest_eigenvalue(const Learnt<T>& d) {
  constexpr int kSteps = 100;
  std::vector<double> v(static_cast<size_t>(d.cols), 1);
  double norm = 0;
  for (int step = 0; step < kSteps; ++step) {
    std::vector<double> next(v.size());
    for (int64_t r = 0; r < d.rows; ++r) {
      double sum = 0;
      const T* row = d.value.data() + r * d.cols;
      for (size_t i = 0; i < v.size(); ++i) sum += static_cast<double>(row[i]) * v[i];
      for (size_t i = 0; i < v.size(); ++i) next[i] += static_cast<double>(row[i]) * sum;
    }
    norm = 0;
    for (const double value : next) norm += value * value;
    norm = std::sqrt(norm);
    for (size_t i = 0; i < v.size(); ++i) v[i] = next[i] / norm;
  }
  return norm;
}

template <class T>
T largest_fall(const std::vector<T>& before, const std::vector<T>& now) {
  T most = -std::numeric_limits<T>::infinity();
  for (size_t s = 0; s < now.size(); ++s) most = std::max(most, before[s] - now[s]);
  return most;
}

template <class T>
double first_step(const LcaProblem<T>& p) {
  constexpr double kMargin = 1.01;
  if (!p.settings.ista) return 1 / static_cast<double>(p.dictionary.cols);
  return 1 / (kMargin * largest_eigenvalue(p.dictionary));
}

}  // namespace

template <class T>
void run_lca(const Learnt<T>& dictionary, const Tiles<T>& x, double lambda,
             const LcaSettings& settings, Tiles<T>& codes, LcaTrace<T>* trace) {
  const LcaProblem<T> p{dictionary, x, lambda, settings};
  const auto samples = static_cast<size_t>(x.samples());
  std::vector<T> step(samples, static_cast<T>(first_step(p)));
  std::vector<T> before(samples, std::numeric_limits<T>::infinity());
  LcaPoint<T> now, shorter, longer;
  now.u = Tiles<T>(x.samples(), dictionary.cols);
  finish_point(p, now);
  Tiles<T> du(x.samples(), dictionary.cols);
  for (int64_t t = 0; t < settings.iterations; ++t) {
    if (largest_fall(before, now.j) < static_cast<T>(settings.fall)) break;
    before = now.j;
    multiply_transposed(dictionary.view(), now.rest, du);
    for (T& value : du.values()) value += static_cast<T>(lambda);
    if (trace != nullptr) trace->u.push_back(now.u);
    if (settings.ista) {
      move_point(p, now, du, step, T{1}, shorter);
      shorter.u = shorter.a;
    } else {
      move_point(p, now, du, step, T{0.5}, shorter);
      move_point(p, now, du, step, T{2}, longer);
      keep_better(shorter, longer, step);
    }
    if (trace != nullptr) trace->step.push_back(step);
    std::swap(now, shorter);
  }
  codes = now.a;
}

namespace {

// MSE over that of the batch's mean, and its gradient of x_hat.
template <class T>
double normalised_error(const Tiles<T>& x, const Tiles<T>& x_hat, Tiles<T>& gradient) {
  constexpr double kGuard = 1e-8;
  const auto entries = static_cast<double>(x.values().size());
  std::vector<T> mean(static_cast<size_t>(x.features()));
  add_sums(x, mean.data());
  double spread = 0, squares = 0;
  for (int64_t s = 0; s < x.samples(); ++s)
    for (int64_t f = 0; f < x.features(); ++f) {
      const double from_mean = x.at(s, f) - static_cast<double>(mean[static_cast<size_t>(f)]) /
                                                static_cast<double>(x.samples());
      spread += from_mean * from_mean / entries;
    }
  for (size_t i = 0; i < x.values().size(); ++i) {
    const double error = static_cast<double>(x_hat.values()[i]) - x.values()[i];
    squares += error * error / entries;
    gradient.values()[i] = static_cast<T>(2 * error / entries / (spread + kGuard));
  }
  return squares / (spread + kGuard);
}

// From the gradient of the codes back through u' = u - c (D^T (D a - x) + lambda), a = max(u, 0).
template <class T>
void back_through(Learnt<T>& d, const Tiles<T>& x, const LcaTrace<T>& trace, const Tiles<T>& codes,
                  const Tiles<T>& d_codes) {
  Tiles<T> of_u = d_codes, v = d_codes, a = codes, around = codes;
  Tiles<T> rest(x.samples(), x.features()), dv = rest;
  for (size_t i = 0; i < of_u.values().size(); ++i)
    if (!(codes.values()[i] > 0)) of_u.values()[i] = 0;
  for (size_t t = trace.u.size(); t-- > 0;) {
    for (int64_t tile = 0; tile < x.tiles(); ++tile)
      for (size_t i = 0; i < lanes(d.cols); ++i)
        v.tile(tile)[i] =
            -trace.step[t][static_cast<size_t>(tile) * kLane + i % kLane] * of_u.tile(tile)[i];
    for (size_t i = 0; i < a.values().size(); ++i)
      a.values()[i] = trace.u[t].values()[i] > 0 ? trace.u[t].values()[i] : T{0};
    multiply(d.view(), static_cast<const T*>(nullptr), a, rest);
    for (size_t i = 0; i < rest.values().size(); ++i) rest.values()[i] -= x.values()[i];
    multiply(d.view(), static_cast<const T*>(nullptr), v, dv);
    multiply_transposed(d.view(), dv, around);
    add_outer(rest, v, d.gradient_view());
    add_outer(dv, a, d.gradient_view());
    for (size_t i = 0; i < a.values().size(); ++i)
      if (a.values()[i] > 0) of_u.values()[i] += around.values()[i];
  }
}

}  // namespace

template <class T>
double lca_gradient(Learnt<T>& dictionary, const Tiles<T>& x, double lambda,
                    const LcaSettings& settings, bool whole_loop) {
  if (whole_loop && settings.ista)
    fail(ExitCode::usage, "lca: the gradient through the whole loop is not that of ista");
  LcaTrace<T> trace;
  Tiles<T> codes, x_hat(x.samples(), x.features()), d_x_hat = x_hat;
  run_lca(dictionary, x, lambda, settings, codes, whole_loop ? &trace : nullptr);
  multiply(dictionary.view(), static_cast<const T*>(nullptr), codes, x_hat);
  const double loss = normalised_error(x, x_hat, d_x_hat);
  std::fill(dictionary.gradient.begin(), dictionary.gradient.end(), T{0});
  add_outer(d_x_hat, codes, dictionary.gradient_view());
  if (whole_loop) {
    Tiles<T> d_codes(x.samples(), dictionary.cols);
    multiply_transposed(dictionary.view(), d_x_hat, d_codes);
    back_through(dictionary, x, trace, codes, d_codes);
  }
  return loss;
}

namespace {

// Batch `step` of the samples in turn, as they stand.
Tiles<float> batch_of(const Tiles<float>& x, int64_t samples, int64_t step) {
  Tiles<float> batch(samples, x.features());
  const int64_t first = step % (x.tiles() / batch.tiles()) * batch.tiles();
  std::copy_n(x.tile(first), batch.values().size(), batch.values().data());
  return batch;
}

}  // namespace

Learnt<float> learn_by_lca(const Tiles<float>& x, const DlLcaSettings& s,
                           std::vector<double>* losses) {
  Learnt<float> d("D", x.features(), s.latents);
  draw_normal(d, s.seed, 0);
  Adam<float> adam;
  for (int64_t step = 0; step < s.steps; ++step) {
    make_columns_unit(d);
    const Tiles<float> batch = batch_of(x, std::min(s.batch, x.samples()), step);
    const double loss = lca_gradient(d, batch, s.lambda, s.lca, s.whole_loop);
    if (!std::isfinite(loss))
      fail(ExitCode::diverged, fmt::format("lca: the loss of step {} is not finite", step),
           "a smaller --rate");
    if (losses != nullptr) losses->push_back(loss);
    adam.step(d, {.rate = s.rate});
  }
  make_columns_unit(d);
  return d;
}

#define MEGADICT_LCA_OF(T)                                                                        \
  template void run_lca(const Learnt<T>&, const Tiles<T>&, double, const LcaSettings&, Tiles<T>&, \
                        LcaTrace<T>*);                                                            \
  template double lca_gradient(Learnt<T>&, const Tiles<T>&, double, const LcaSettings&, bool);

MEGADICT_LCA_OF(float)
MEGADICT_LCA_OF(double)

}  // namespace megadict
