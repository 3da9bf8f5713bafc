// Rows, reconstructions and codes for the tests of the metrics.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/philox.h"
#include "eval/metrics.h"

namespace megadict::test {

struct MetricRows {
  int64_t rows = 0, d = 0, n = 0;
  std::vector<float> x, x_hat;
  std::vector<double> z;  // [rows, n], not negative; decoder rows are unit

  const float* x_row(int64_t t) const { return x.data() + t * d; }
  const float* x_hat_row(int64_t t) const { return x_hat.data() + t * d; }
};

// 4,000 rows of width 8 around 3, reconstructed as .9 x + a constant + noise, with exact moments:
// every coordinate of x has mean 3 and variance 1.004, the noise is uncorrelated with x, the mean
// error and the noise have the sizes that give the facts that the golden test states.
inline MetricRows golden_rows() {
  constexpr double variance = 1.004, fvu = 0.06826, varying = 0.0139;
  MetricRows data{4000, 8, 16, {}, {}, {}};
  data.x.resize(static_cast<size_t>(data.rows * data.d));
  data.x_hat.resize(data.x.size());
  const auto count = static_cast<double>(data.rows);
  const auto standardise = [&](std::vector<double>& v, const std::vector<double>* against) {
    const double mean = std::accumulate(v.begin(), v.end(), 0.0) / count;
    for (double& value : v) value -= mean;
    if (against) {
      const double along = std::inner_product(v.begin(), v.end(), against->begin(), 0.0) / count;
      for (size_t i = 0; i < v.size(); ++i) v[i] -= along * (*against)[i];
    }
    const double sd = std::sqrt(std::inner_product(v.begin(), v.end(), v.begin(), 0.0) / count);
    for (double& value : v) value /= sd;
  };
  for (int64_t j = 0; j < data.d; ++j) {
    std::vector<double> x(static_cast<size_t>(data.rows)), noise(x.size());
    for (int64_t t = 0; t < data.rows; ++t) {
      const Rng rng{4, Purpose::test, static_cast<uint64_t>(j)};
      const auto draws = rng.normals(static_cast<uint64_t>(t));
      x[static_cast<size_t>(t)] = draws[0];
      noise[static_cast<size_t>(t)] = draws[1];
    }
    standardise(x, nullptr);
    standardise(noise, &x);
    const double constant = 0.1 * 3 - std::sqrt((fvu - varying) * variance);
    const double noise_sd = std::sqrt((varying - 0.01) * variance);
    for (int64_t t = 0; t < data.rows; ++t) {
      const double value = 3 + std::sqrt(variance) * x[static_cast<size_t>(t)];
      const auto at = static_cast<size_t>(t * data.d + j);
      data.x[at] = static_cast<float>(value);
      data.x_hat[at] =
          static_cast<float>(0.9 * value + constant + noise_sd * noise[static_cast<size_t>(t)]);
    }
  }
  for (int64_t i = 0; i < data.rows * data.n;
       ++i) {  // latent j is active in about j/16 of the rows
    const Rng rng{5, Purpose::test, 0};
    const double threshold = static_cast<double>(i % data.n) / static_cast<double>(data.n);
    data.z.push_back(std::max(0.0, threshold - rng.uniform(static_cast<uint64_t>(i))));
  }
  return data;
}

inline std::vector<int64_t> in_order(int64_t rows) {
  std::vector<int64_t> order(static_cast<size_t>(rows));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

// Adds rows order[part] in batches, as an evaluation loop does; these are the peers' batches, too.
inline void add(MetricSums& sums, const MetricRows& data, const std::vector<int64_t>& order,
                Range part, int64_t batch) {
  const Range mine = sums.latents();
  for (int64_t from = part.begin; from < part.end; from += batch) {
    const int64_t rows = std::min(batch, part.end - from);
    std::vector<float> x, x_hat;
    std::vector<int64_t> l0, fired(static_cast<size_t>(mine.size()));
    std::vector<double> l1;
    for (int64_t i = from; i < from + rows; ++i) {
      const int64_t t = order[static_cast<size_t>(i)];
      x.insert(x.end(), data.x_row(t), data.x_row(t) + data.d);
      x_hat.insert(x_hat.end(), data.x_hat_row(t), data.x_hat_row(t) + data.d);
      const double* z = data.z.data() + t * data.n;
      l0.push_back(std::count_if(z, z + data.n, [](double v) { return v > 0; }));
      l1.push_back(std::accumulate(z, z + data.n, 0.0));
      for (int64_t j = mine.begin; j < mine.end; ++j)
        fired[static_cast<size_t>(j - mine.begin)] += z[j] > 0 ? 1 : 0;
    }
    sums.add_rows(x.data(), x_hat.data(), rows, l0.data(), l1.data());
    sums.end_batch();
    sums.add_fired(fired);
  }
}

inline double peer_value(const MetricReport& report, std::string_view name) {
  for (const auto& [metric, value] : report.peers)
    if (metric->name == name) return value;
  ADD_FAILURE() << "no peer prints " << name;
  return 0;
}

inline MetricSums empty_sums(const MetricRows& data) {
  return {data.d, data.n, {0, data.n}, mean_row(data.x.data(), 64, data.d)};
}

inline MetricReport report_of(const MetricRows& data, const std::vector<int64_t>& order,
                              int64_t batch) {
  MetricSums sums = empty_sums(data);
  add(sums, data, order, {0, static_cast<int64_t>(order.size())}, batch);
  sums.set_decoder_norms(std::vector<double>(static_cast<size_t>(data.n), 1.0));
  return finish(totals_of(sums));
}

}  // namespace megadict::test
