// Encoding on the CPU: tiles of x W_enc^T that never leave the registers but for what passes a
// row's threshold, so that no b x l tensor exists.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/background.h"
#include "base/parallel_guard.h"
#include "kernels/cpu_kernels.h"
#include "kernels/fp32_tile.h"
#include "kernels/memory.h"
#include "kernels/order.h"

namespace megadict {

namespace {

constexpr int64_t kBlock = Fp32Block::kRows;
constexpr int64_t kUnitRows = 16 * kBlock;  // share a pass over the encoder, at most
constexpr int64_t kChunkBytes = 384 << 10;  // of encoder rows: half of a usual L2
constexpr float kNone = -std::numeric_limits<float>::infinity();

// A few blocks of rows, packed for the tile, and their lists of hits; one thread's.
class Unit {
 public:
  Unit(const EncodeArgs& args, int64_t begin, int64_t end, int64_t capacity, float threshold)
      : args_(args),
        begin_(begin),
        rows_(end - begin),
        blocks_((rows_ + kBlock - 1) / kBlock),
        capacity_(capacity),
        d_(args.x_bd.size(1)),
        x_(blocks_ * kBlock * d_, 0.0f),
        threshold_(blocks_ * kBlock, threshold),
        hits_(blocks_ * kBlock * capacity),
        count_(blocks_ * kBlock, 0) {
    const float* from = args.x_bd.const_data_ptr<float>() + begin * d_;
    for (int64_t row = 0; row < rows_; ++row) {
      float* to = x_.data() + row / kBlock * kBlock * d_ + row % kBlock;
      for (int64_t i = 0; i < d_; ++i) to[i * kBlock] = from[row * d_ + i];
    }
  }

  int64_t begin() const { return begin_; }
  int64_t rows() const { return rows_; }
  int32_t& count(int64_t row) { return count_[row]; }
  float& threshold(int64_t row) { return threshold_[row]; }
  ValueHit* hits(int64_t row) { return hits_.data() + row * capacity_; }

  // All latents; full(unit, row) makes room in a row's list.
  template <class Full>
  void run(Full&& full) {
    const float* w = args_.w_enc_ld.const_data_ptr<float>();
    const float* bias = args_.b_enc_l.const_data_ptr<float>();
    const int64_t l = args_.w_enc_ld.size(0);
    const int64_t chunk = std::max<int64_t>(6, kChunkBytes / 4 / d_ / 6 * 6);
    const Fp32Tile& tile = best_fp32_tile();
    for (int64_t first = 0; first < l; first += chunk)
      for (int64_t b = 0; b < blocks_; ++b) {
        struct At {
          Unit* unit;
          Full& full;
          int64_t row;
        } at{this, full, b * kBlock};
        const int64_t row = at.row;
        Fp32Block block{x_.data() + row * d_,
                        std::min(kBlock, rows_ - at.row),
                        threshold_.data() + row,
                        hits(at.row),
                        count_.data() + row,
                        static_cast<int32_t>(capacity_),
                        [](Fp32Block& of, int64_t r) {
                          At& where = *static_cast<At*>(of.context);
                          where.full(*where.unit, where.row + r);
                        },
                        &at};
        tile.run(w, bias, d_, first, std::min(l, first + chunk), block);
        give_way();
      }
  }

 private:
  const EncodeArgs& args_;
  int64_t begin_, rows_, blocks_, capacity_, d_;
  Buffer<float> x_, threshold_;
  Buffer<ValueHit> hits_;
  Buffer<int32_t> count_;
};

// Runs work(first row, last row) on units of rows, spread over the threads.
template <class Work>
void for_each_unit(int64_t rows, Work&& work) {
  const int64_t threads = std::max(at::get_num_threads(), 1);
  const int64_t share = (rows + threads - 1) / threads;
  const int64_t unit = std::clamp((share + kBlock - 1) / kBlock * kBlock, kBlock, kUnitRows);
  const int64_t units = (rows + unit - 1) / unit;
  ParallelGuard guard;
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t i = 0; i < units; ++i)
    guard.run([&] { work(i * unit, std::min(rows, (i + 1) * unit)); });
  guard.rethrow();
}

bool before(const ValueHit& a, const ValueHit& b) {
  return order_key(a.value, static_cast<uint32_t>(a.latent)) >
         order_key(b.value, static_cast<uint32_t>(b.latent));
}

// Keeps a row's best k. Latents arrive in ascending order, so a later entry equal to the k-th value
// can never replace it and the tile's strict comparison is exact.
void keep_best(Unit& unit, int64_t row, int64_t k) {
  ValueHit* list = unit.hits(row);
  if (unit.count(row) <= k) return;
  std::nth_element(list, list + (k - 1), list + unit.count(row), before);
  unit.count(row) = static_cast<int32_t>(k);
  unit.threshold(row) = list[k - 1].value;
}

}  // namespace

Candidates cpu_topk(const EncodeArgs& args, int64_t k) {
  const int64_t rows = args.x_bd.size(0), l = args.w_enc_ld.size(0), kept = std::min(k, l);
  Candidates out{at::empty({rows, kept}, at::kFloat), at::empty({rows, kept}, at::kInt)};
  float* value = out.value.mutable_data_ptr<float>();
  int32_t* latent = out.latent.mutable_data_ptr<int32_t>();
  const int64_t capacity = std::max<int64_t>(512, 3 * kept);
  for_each_unit(rows, [&](int64_t begin, int64_t end) {
    Unit unit(args, begin, end, capacity, kNone);
    unit.run([kept](Unit& full, int64_t row) { keep_best(full, row, kept); });
    for (int64_t row = 0; row < unit.rows(); ++row) {
      keep_best(unit, row, kept);
      ValueHit* list = unit.hits(row);
      std::sort(list, list + unit.count(row), before);
      // Values of -inf never enter: what is missing is padding, which nothing selects.
      for (int64_t p = 0; p < kept; ++p) {
        const ValueHit hit = p < unit.count(row) ? list[p] : ValueHit{0, kNone};
        value[(begin + row) * kept + p] = hit.value;
        latent[(begin + row) * kept + p] = hit.latent;
      }
    }
  });
  return out;
}

Codes cpu_above(const EncodeArgs& args, float threshold) {
  constexpr int64_t kCapacity = 512;
  const int64_t rows = args.x_bd.size(0);
  std::vector<std::vector<ValueHit>> entries(static_cast<size_t>(rows));
  for_each_unit(rows, [&](int64_t begin, int64_t end) {
    Unit unit(args, begin, end, kCapacity, threshold);
    const auto take = [&entries](Unit& full, int64_t row) {
      auto& mine = entries[static_cast<size_t>(full.begin() + row)];
      mine.insert(mine.end(), full.hits(row), full.hits(row) + full.count(row));
      full.count(row) = 0;
    };
    unit.run(take);
    for (int64_t row = 0; row < unit.rows(); ++row) take(unit, row);
  });
  Codes codes = empty_codes(rows, args.w_enc_ld.size(0));
  auto* start = codes.row_start.mutable_data_ptr<int64_t>();
  start[0] = 0;
  for (int64_t row = 0; row < rows; ++row)
    start[row + 1] = start[row] + static_cast<int64_t>(entries[static_cast<size_t>(row)].size());
  codes.latent = at::empty({start[rows]}, at::kInt);
  codes.value = at::empty({start[rows]}, at::kFloat);
  auto* latent = codes.latent.mutable_data_ptr<int32_t>();
  auto* value = codes.value.mutable_data_ptr<float>();
  for (int64_t row = 0; row < rows; ++row) {
    int64_t at = start[row];
    for (const ValueHit& entry : entries[static_cast<size_t>(row)]) {
      latent[at] = entry.latent;
      value[at++] = entry.value;
    }
  }
  return codes;
}

}  // namespace megadict
