#include "kernels/screen.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>

#include "base/background.h"
#include "base/parallel_guard.h"
#include "kernels/cpu_kernels.h"
#include "kernels/order.h"
#include "kernels/screen_outliers.h"
#include "kernels/screen_pass.h"
#include "kernels/vector_ops.h"

namespace megadict {

namespace {

constexpr int64_t kUnitBlocks = 16;  // row blocks that share a pass over the encoder, at most
constexpr int64_t kNearTies = 16;
constexpr float kNone = -std::numeric_limits<float>::infinity();
// A low guess costs hits, a high one a second pass over the row.
constexpr double kGuessPercentile = 0.005, kGuessFactor = 0.97;

}  // namespace

namespace {

enum Outcome : uint8_t { kDone, kGuessTooHigh, kHopeless };

}  // namespace

struct Screen::Found {
  Candidates best;
  Buffer<float> norm;            // |x| of each row
  std::vector<uint8_t> outcome;  // of each row

  int64_t k() const { return best.value.size(1); }

  at::Tensor rows_with(Outcome which) const {
    std::vector<int64_t> rows;
    for (size_t i = 0; i < outcome.size(); ++i)
      if (outcome[i] == which) rows.push_back(static_cast<int64_t>(i));
    return at::tensor(rows, at::kLong);
  }

  // The smallest value of a row's list, 0 where it is not full.
  float last(int64_t row) const {
    return std::max(0.0f, best.value.const_data_ptr<float>()[(row + 1) * k() - 1]);
  }

  void replace(const at::Tensor& rows, const Candidates& with, uint8_t its_outcome) {
    best.value.index_copy_(0, rows, with.value);
    best.latent.index_copy_(0, rows, with.latent);
    const int64_t* row = rows.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < rows.numel(); ++i) outcome[static_cast<size_t>(row[i])] = its_outcome;
  }
};

Screen::Screen(const at::Tensor& w_enc_ld, const ScreenTile& tile)
    : rows_(screen_product(tile.kind), w_enc_ld.size(0), w_enc_ld.size(1)), tile_(tile) {
  refresh(w_enc_ld);
}

void Screen::refresh(const at::Tensor& w_enc_ld) {
  const float* w = w_enc_ld.const_data_ptr<float>();
  ParallelGuard guard;
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows_.rows; ++row)
    guard.run([&] { rows_.set(row, w + row * rows_.d); });
  guard.rethrow();
}

void Screen::keep_outliers_apart(const EncodeArgs& args) {
  std::vector<int64_t> dims = outlier_dims(*rows_.product, args.x_bd.const_data_ptr<float>(),
                                           args.x_bd.size(0), args.w_enc_ld.const_data_ptr<float>(),
                                           rows_.rows, rows_.d, ScreenRows::kMostApart);
  if (dims.empty()) return;
  rows_.keep_apart(std::move(dims));
  refresh(args.w_enc_ld);
}

Screen::Found Screen::screened(const EncodeArgs& args, int64_t k, std::span<const float> start) {
  ScreenPass pass(args, rows_, k, window_);
  const int64_t rows = pass.rows;
  Found found{{at::empty({rows, k}, at::kFloat), at::empty({rows, k}, at::kInt)}, {}, {}};
  found.outcome.assign(static_cast<size_t>(rows), kDone);
  float* value = found.best.value.mutable_data_ptr<float>();
  int32_t* latent = found.best.latent.mutable_data_ptr<int32_t>();
  int64_t hits = 0, rescored = 0;
  const int64_t threads = at::get_num_threads();
  const int64_t unit_blocks =
      std::clamp<int64_t>((pass.blocks + threads - 1) / threads, 1, kUnitBlocks);
  const auto pack = [&](int64_t row) {
    pass.pack(row);
    pass.start_at(row, start.empty() ? relative_threshold_ * pass.norm[row]
                                     : start[static_cast<size_t>(row)]);
  };
  const auto resolve = [&](int64_t row) {  // returns how many were evaluated
    const int64_t evaluated = pass.resolve(row, value + row * k, latent + row * k);
    uint8_t& outcome = found.outcome[static_cast<size_t>(row)];
    if (pass.hopeless[row])
      outcome = kHopeless;
    else if (found.last(row) * pass.inverse[row] < pass.threshold[row])
      outcome = kGuessTooHigh;
    return evaluated;
  };
  ParallelGuard guard;
#pragma omp parallel reduction(+ : hits, rescored)
  {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) guard.run([&] { pack(row); });
#pragma omp for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < pass.blocks; unit += unit_blocks)
      guard.run(
          [&] { pass.screen_blocks(tile_, unit, std::min(pass.blocks, unit + unit_blocks)); });
#pragma omp for schedule(dynamic, 16)
    for (int64_t row = 0; row < rows; ++row) {
      hits += pass.count[row];
      guard.run([&] { rescored += resolve(row); });
    }
  }
  guard.rethrow();
  found.norm = pass.norm;
  stats_.hits += hits;
  stats_.rescored += rescored;
  return found;
}

// All rows left to fp32.
Screen::Found Screen::unscreened(int64_t rows, int64_t k) {
  return {{at::empty({rows, k}, at::kFloat), at::empty({rows, k}, at::kInt)},
          Buffer<float>(rows, 0.0f),
          std::vector<uint8_t>(static_cast<size_t>(rows), kHopeless)};
}

// The k-th best of what was found is a threshold that cannot be too high.
void Screen::screen_again(const EncodeArgs& args, int64_t k, Found& found) {
  const at::Tensor rows = found.rows_with(kGuessTooHigh);
  if (rows.numel() == 0) return;
  std::vector<float> start;
  for (int64_t i = 0; i < rows.numel(); ++i)
    start.push_back(found.last(rows.const_data_ptr<int64_t>()[i]) * (1 - 1e-5f));
  const at::Tensor x = args.x_bd.index_select(0, rows);
  const Found second = screened({x, args.w_enc_ld, args.b_enc_l}, k, start);
  found.replace(rows, second.best, kDone);
  const at::Tensor hopeless = rows.index_select(0, second.rows_with(kHopeless));
  for (int64_t i = 0; i < hopeless.numel(); ++i)
    found.outcome[static_cast<size_t>(hopeless.const_data_ptr<int64_t>()[i])] = kHopeless;
  stats_.again += rows.numel();
}

// Rows of which the screen can say nothing: fp32 alone, with the values the screen would give.
void Screen::encode_exactly(const EncodeArgs& args, int64_t k, Found& found) {
  const at::Tensor rows = found.rows_with(kHopeless);
  if (rows.numel() == 0) return;
  const at::Tensor x = args.x_bd.index_select(0, rows);
  // The two products round differently: a few more, so that the order of this one decides.
  const int64_t more = std::min(k + kNearTies, rows_.rows);
  const Candidates found_exactly = cpu_topk({x, args.w_enc_ld, args.b_enc_l}, more);
  Candidates exact{at::empty({x.size(0), k}, at::kFloat), at::empty({x.size(0), k}, at::kInt)};
  const float* bias = args.b_enc_l.const_data_ptr<float>();
  const float* w = args.w_enc_ld.const_data_ptr<float>();
  std::vector<uint64_t> keys(static_cast<size_t>(more));
  for (int64_t row = 0; row < x.size(0); ++row) {
    const float* its_x = x.const_data_ptr<float>() + row * rows_.d;
    const float* listed = found_exactly.value.const_data_ptr<float>() + row * more;
    const int32_t* from = found_exactly.latent.const_data_ptr<int32_t>() + row * more;
    float* value = exact.value.mutable_data_ptr<float>() + row * k;
    int32_t* latent = exact.latent.mutable_data_ptr<int32_t>() + row * k;
    for (int64_t i = 0; i < more; ++i) {
      const auto v = static_cast<float>(dot(its_x, w + from[i] * rows_.d, rows_.d) + bias[from[i]]);
      const bool there = listed[i] != kNone && !(v <= 0);
      keys[static_cast<size_t>(i)] =
          order_key(there ? v : kNone, static_cast<uint32_t>(there ? from[i] : 0));
    }
    std::sort(keys.begin(), keys.end(), std::greater<>());
    for (int64_t i = 0; i < k; ++i) {
      value[i] = key_value(keys[static_cast<size_t>(i)]);
      latent[i] = static_cast<int32_t>(key_position(keys[static_cast<size_t>(i)]));
    }
  }
  found.replace(rows, exact, kDone);
  stats_.exact += rows.numel();
}

// Counts what beats a list's last entry: as many as the list says, or something was missed.
void Screen::check(const EncodeArgs& args, int64_t k, std::span<const int64_t> rows, Found& found) {
  const float* w = args.w_enc_ld.const_data_ptr<float>();
  const float* x = args.x_bd.const_data_ptr<float>();
  const float* bias = args.b_enc_l.const_data_ptr<float>();
  const int64_t d = rows_.d;
  std::vector<int64_t> above(rows.size(), 0);
  ParallelGuard guard;
#pragma omp parallel
  {
    std::vector<int64_t> mine;
    guard.run([&] { mine.assign(rows.size(), 0); });
#pragma omp for schedule(static) nowait
    for (int64_t j = 0; j < rows_.rows; ++j)
      for (size_t r = 0; r < mine.size(); ++r)
        mine[r] +=
            static_cast<float>(dot(x + rows[r] * d, w + j * d, d) + bias[j]) > found.last(rows[r]);
#pragma omp critical
    for (size_t r = 0; r < mine.size(); ++r) above[r] += mine[r];
  }
  guard.rethrow();
  for (size_t r = 0; r < rows.size(); ++r) {
    const float* list = found.best.value.const_data_ptr<float>() + rows[r] * k;
    const float last = found.last(rows[r]);
    const int64_t listed = std::count_if(list, list + k, [last](float v) { return v > last; });
    if (above[r] <= listed || !std::isfinite(largest_magnitude(x + rows[r] * d, d))) continue;
    stats_.missed += above[r] - listed;
    found.outcome[static_cast<size_t>(rows[r])] = kHopeless;
    if (window_ >= kWidestWindow) stats_.given_up = given_up_ = true;
    window_ = std::min(kWidestWindow, window_ * 1.25);
  }
  stats_.checked += static_cast<int64_t>(rows.size());
  encode_exactly(args, k, found);
}

void Screen::learn_threshold(const Found& found) {
  Buffer<float> relative(found.best.value.size(0));
  float* end = relative.begin();
  for (int64_t row = 0; row < relative.size(); ++row)
    if (found.norm[row] > 0 && std::isfinite(found.norm[row]))
      *end++ = found.last(row) / found.norm[row];
  if (end == relative.begin()) return;
  float* at = relative.begin() +
              static_cast<int64_t>(kGuessPercentile * static_cast<double>(end - relative.begin()));
  std::nth_element(relative.begin(), at, end);
  relative_threshold_ = static_cast<float>(kGuessFactor * *at);
}

Candidates Screen::topk(const EncodeArgs& args, int64_t k, std::span<const int64_t> check_rows) {
  k = std::min(k, rows_.rows);
  const int64_t rows = args.x_bd.size(0);
  if (rows > 0 && !std::exchange(looked_for_outliers_, true)) keep_outliers_apart(args);
  // A bias that is not finite could hide its latent from the filter.
  const bool told =
      std::isfinite(largest_magnitude(args.b_enc_l.const_data_ptr<float>(), args.b_enc_l.numel()));
  Found found = told && !given_up_ ? screened(args, k, {}) : unscreened(rows, k);
  screen_again(args, k, found);
  encode_exactly(args, k, found);
  learn_threshold(found);
  check(args, k, check_rows, found);
  stats_.rows += rows;
  return found.best;
}

void Screen::remember(const Memory& memory) {
  window_ = std::clamp(memory.window, kWindow, kWidestWindow);
  relative_threshold_ = memory.relative_threshold;
}

Codes Screen::above(const EncodeArgs& args, float threshold) const {
  const float* w = args.w_enc_ld.const_data_ptr<float>();
  const float* x = args.x_bd.const_data_ptr<float>();
  const float* bias = args.b_enc_l.const_data_ptr<float>();
  const int64_t d = rows_.d;
  const auto longest = [d](const float* all, int64_t count) {
    double square = 0;
#pragma omp parallel for schedule(static) reduction(max : square)
    for (int64_t i = 0; i < count; ++i) square = std::max(square, dot(all + i * d, all + i * d, d));
    return std::sqrt(square);
  };
  // The tile's chain of d multiply-adds and dot() differ by less than this, and bias added.
  const double apart = static_cast<double>(d + 16) * 0x1p-23 * longest(x, args.x_bd.size(0)) *
                           longest(w, rows_.rows) +
                       1e-6 * threshold;
  Codes codes = cpu_above(args, std::isfinite(apart) ? static_cast<float>(threshold - apart) : 0);
  auto* start = codes.row_start.mutable_data_ptr<int64_t>();
  auto* latent = codes.latent.mutable_data_ptr<int32_t>();
  auto* value = codes.value.mutable_data_ptr<float>();
#pragma omp parallel for schedule(dynamic, 16)
  for (int64_t row = 0; row < codes.rows; ++row)
    for (int64_t i = start[row]; i < start[row + 1]; ++i) {
      const int64_t j = latent[i];
      value[i] = static_cast<float>(dot(x + row * d, w + j * d, d) + bias[j]);
    }
  int64_t kept = 0;
  for (int64_t row = 0, next = 0; row < codes.rows; ++row) {
    for (const int64_t end = start[row + 1]; next < end; ++next) {
      if (value[next] <= threshold) continue;  // NaN stays
      latent[kept] = latent[next];
      value[kept++] = value[next];
    }
    start[row + 1] = kept;
  }
  codes.latent = codes.latent.narrow(0, 0, kept);
  codes.value = codes.value.narrow(0, 0, kept);
  return codes;
}

ScreenStats Screen::take_stats() {
  return std::exchange(stats_, {});
}

}  // namespace megadict
