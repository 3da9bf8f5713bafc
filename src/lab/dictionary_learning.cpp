#include "lab/dictionary_learning.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/philox.h"

namespace megadict {

namespace {

// D^T D, [n, n].
Learnt<float> gram_of(const Learnt<float>& d) {
  Learnt<float> gram("gram", d.cols, d.cols);
  for (int64_t i = 0; i < d.cols; ++i)
    for (int64_t j = 0; j < d.cols; ++j) {
      double sum = 0;
      for (int64_t r = 0; r < d.rows; ++r)
        sum += static_cast<double>(d.value[static_cast<size_t>(r * d.cols + i)]) *
               d.value[static_cast<size_t>(r * d.cols + j)];
      gram.value[static_cast<size_t>(i * d.cols + j)] = static_cast<float>(sum);
    }
  return gram;
}

double largest_eigenvalue(const Learnt<float>& gram) {
  constexpr int kSteps = 100;
  const auto n = static_cast<size_t>(gram.rows);
  std::vector<double> v(n, 1), next(n);
  double norm = 0;
  for (int step = 0; step < kSteps; ++step) {
    norm = 0;
    for (size_t i = 0; i < n; ++i) {
      next[i] = 0;
      for (size_t j = 0; j < n; ++j) next[i] += gram.value[i * n + j] * v[j];
      norm += next[i] * next[i];
    }
    norm = std::sqrt(norm);
    for (size_t i = 0; i < n; ++i) v[i] = next[i] / norm;
  }
  return norm;
}

}  // namespace

void run_fista(const Learnt<float>& dictionary, const Tiles<float>& x, double lambda,
               int64_t iterations, Tiles<float>& codes) {
  constexpr double kMargin = 1.01;
  const Learnt<float> gram = gram_of(dictionary);
  const auto step = static_cast<float>(1 / (kMargin * largest_eigenvalue(gram)));
  const auto shrink = static_cast<float>(step * lambda);
  Tiles<float> product(x.samples(), dictionary.cols), gradient = product, y = product;
  multiply_transposed(dictionary.view(), x, product);
  codes = Tiles<float>(x.samples(), dictionary.cols);
  float* s = codes.values().data();
  double t = 1;
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    multiply(gram.view(), nullptr, y, gradient);
    const double next_t = (1 + std::sqrt(1 + 4 * t * t)) / 2;
    const auto momentum = static_cast<float>((t - 1) / next_t);
    const float* g = gradient.values().data();
    const float* c = product.values().data();
    float* ahead = y.values().data();
    for (size_t i = 0; i < codes.values().size(); ++i) {
      const float moved = ahead[i] - step * (g[i] - c[i]) - shrink;
      const float next = moved > 0 ? moved : 0;
      ahead[i] = next + momentum * (next - s[i]);
      s[i] = next;
    }
    t = next_t;
  }
}

double lasso_objective(const Learnt<float>& dictionary, const Tiles<float>& x, double lambda,
                       const Tiles<float>& codes) {
  Tiles<float> x_hat(x.samples(), x.features());
  multiply(dictionary.view(), nullptr, codes, x_hat);
  double squares = 0, sum = 0;
  for (size_t i = 0; i < x.values().size(); ++i) {
    const double error = static_cast<double>(x_hat.values()[i]) - x.values()[i];
    squares += error * error;
  }
  for (const float z : codes.values()) sum += std::abs(static_cast<double>(z));
  return squares / 2 + lambda * sum;
}

namespace {

// What the atoms' update needs of the codes: A = S^T S [n, n], C = X^T S [m, n].
struct CodeProducts {
  Learnt<float> a, c;
};

CodeProducts products_of(const Tiles<float>& x, const Tiles<float>& codes) {
  CodeProducts products{{"A", codes.features(), codes.features()},
                        {"C", x.features(), codes.features()}};
  add_outer(codes, codes, {products.a.value.data(), codes.features(), codes.features()});
  add_outer(x, codes, {products.c.value.data(), x.features(), codes.features()});
  return products;
}

void set_column(Learnt<float>& d, int64_t column, const std::vector<double>& values) {
  double square = 0;
  for (const double value : values) square += value * value;
  for (int64_t r = 0; r < d.rows; ++r)
    d.value[static_cast<size_t>(r * d.cols + column)] =
        static_cast<float>(values[static_cast<size_t>(r)] / std::sqrt(square));
}

// Atom by atom, the others fixed; one that no code uses becomes a sample.
void update_atoms(const CodeProducts& p, const Tiles<float>& x, const Rng& rng, int64_t pass,
                  Learnt<float>& d) {
  constexpr float kUnused = 1e-6f;
  const int64_t n = d.cols;
  std::vector<double> column(static_cast<size_t>(d.rows));
  for (int64_t j = 0; j < n; ++j) {
    const float own = p.a.value[static_cast<size_t>(j * n + j)];
    const auto sample =
        static_cast<int64_t>(rng.uniform(static_cast<uint64_t>(j), static_cast<uint32_t>(pass)) *
                             static_cast<double>(x.samples()));
    for (int64_t r = 0; r < d.rows; ++r) {
      double sum = p.c.value[static_cast<size_t>(r * n + j)];
      for (int64_t i = 0; i < n; ++i)
        sum -= static_cast<double>(d.value[static_cast<size_t>(r * n + i)]) *
               p.a.value[static_cast<size_t>(i * n + j)];
      column[static_cast<size_t>(r)] =
          own < kUnused ? x.at(sample, r) : d.value[static_cast<size_t>(r * n + j)] + sum / own;
    }
    set_column(d, j, column);
  }
}

}  // namespace

void improve_atoms(const Tiles<float>& x, const Tiles<float>& codes, uint64_t seed, int64_t round,
                   int64_t passes, Learnt<float>& dictionary) {
  const CodeProducts products = products_of(x, codes);
  const Rng rng{seed, Purpose::lab_draw, static_cast<uint64_t>(round)};
  for (int64_t pass = 0; pass < passes; ++pass) update_atoms(products, x, rng, pass, dictionary);
}

Learnt<float> learn_by_fista(const Tiles<float>& x, const DlFistaSettings& s,
                             std::vector<double>* objectives) {
  Learnt<float> d("D", x.features(), s.latents);
  draw_normal(d, s.seed, 0);
  make_columns_unit(d);
  Tiles<float> codes;
  for (int64_t round = 0; round < s.rounds; ++round) {
    run_fista(d, x, s.lambda, s.iterations, codes);
    if (objectives != nullptr) objectives->push_back(lasso_objective(d, x, s.lambda, codes));
    improve_atoms(x, codes, s.seed, round, s.passes, d);
  }
  return d;
}

namespace {

double squared_distance(const Tiles<float>& x, int64_t sample, const Learnt<float>& centres,
                        int64_t centre) {
  double sum = 0;
  for (int64_t f = 0; f < x.features(); ++f) {
    const double apart = static_cast<double>(x.at(sample, f)) -
                         centres.value[static_cast<size_t>(f * centres.cols + centre)];
    sum += apart * apart;
  }
  return sum;
}

void place_centre(Learnt<float>& centres, int64_t centre, const Tiles<float>& x, int64_t sample) {
  for (int64_t f = 0; f < x.features(); ++f)
    centres.value[static_cast<size_t>(f * centres.cols + centre)] = x.at(sample, f);
}

// Samples far from the centres so far are likelier, by squared distance.
Learnt<float> first_centres(const Tiles<float>& x, int64_t count, uint64_t seed) {
  const Rng rng{seed, Purpose::lab_draw, 0};
  Learnt<float> centres("centres", x.features(), count);
  std::vector<double> nearest(static_cast<size_t>(x.samples()), 1);
  for (int64_t c = 0; c < count; ++c) {
    double total = 0;
    for (const double d : nearest) total += d;
    double left = rng.uniform(static_cast<uint64_t>(c)) * total;
    int64_t sample = 0;
    while (sample + 1 < x.samples() && (left -= nearest[static_cast<size_t>(sample)]) >= 0)
      ++sample;
    place_centre(centres, c, x, sample);
    for (int64_t i = 0; i < x.samples(); ++i) {
      const double d = squared_distance(x, i, centres, c);
      double& kept = nearest[static_cast<size_t>(i)];
      kept = c == 0 ? d : std::min(kept, d);
    }
  }
  return centres;
}

struct Nearest {
  int64_t centre = 0;
  double distance = std::numeric_limits<double>::infinity();
};

Nearest nearest_to(const Tiles<float>& x, int64_t sample, const Learnt<float>& centres) {
  Nearest best;
  for (int64_t c = 0; c < centres.cols; ++c) {
    const double d = squared_distance(x, sample, centres, c);
    if (d < best.distance) best = {c, d};
  }
  return best;
}

}  // namespace

KMeans learn_by_kmeans(const Tiles<float>& x, int64_t count, uint64_t seed) {
  KMeans out{first_centres(x, count, seed), {}};
  std::vector<int64_t> own(static_cast<size_t>(x.samples()), -1);
  for (bool moves = true; moves;) {
    moves = false;
    double inertia = 0;
    std::vector<double> sum(static_cast<size_t>(x.features() * count));
    std::vector<int64_t> members(static_cast<size_t>(count));
    for (int64_t i = 0; i < x.samples(); ++i) {
      const Nearest nearest = nearest_to(x, i, out.centres);
      int64_t& mine = own[static_cast<size_t>(i)];
      moves |= mine != nearest.centre;
      mine = nearest.centre;
      inertia += nearest.distance;
      ++members[static_cast<size_t>(mine)];
      for (int64_t f = 0; f < x.features(); ++f)
        sum[static_cast<size_t>(f * count + mine)] += x.at(i, f);
    }
    out.inertias.push_back(inertia);
    for (int64_t c = 0; c < count; ++c)
      for (int64_t f = 0; f < x.features() && members[static_cast<size_t>(c)] > 0; ++f) {
        const auto at = static_cast<size_t>(f * count + c);
        out.centres.value[at] =
            static_cast<float>(sum[at] / static_cast<double>(members[static_cast<size_t>(c)]));
      }
  }
  return out;
}

Tiles<float> nearest_centres(const Learnt<float>& centres, const Tiles<float>& x) {
  Tiles<float> codes(x.samples(), centres.cols);
  for (int64_t i = 0; i < x.samples(); ++i) codes.at(i, nearest_to(x, i, centres).centre) = 1;
  return codes;
}

}  // namespace megadict
