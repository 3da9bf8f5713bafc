// Encoding on the CPU: cache tiles of x W_enc^T through the BLAS inside LibTorch, each tile
// consumed while it is in cache (performance.md 2.1), so that no b x l tensor exists.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu_kernels.h"
#include "kernels/gemm_tiles.h"
#include "kernels/order.h"

namespace megadict {

namespace {

// Runs work(first row, last row) on blocks of at most kTileRows rows, spread over the threads.
template <class Work>
void for_each_block(int64_t rows, Work&& work) {
  const int64_t threads = at::get_num_threads();
  const int64_t block =
      std::clamp<int64_t>((rows + threads - 1) / std::max<int64_t>(threads, 1), 1, kTileRows);
  const int64_t blocks = (rows + block - 1) / block;
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t i = 0; i < blocks; ++i) work(i * block, std::min(rows, (i + 1) * block));
}

// Positions p of v[0, count) with !(v[p] <= tau), NaN included, appended as keys. Groups that
// hold none, nearly all of them, cost one vectorised pass.
__attribute__((target_clones("avx512f", "avx2", "default"))) int64_t append_above(
    const float* v, int count, float tau, uint32_t first, uint64_t* keys) {
  constexpr int kGroup = 64;
  int64_t found = 0;
  for (int base = 0; base < count; base += kGroup) {
    const int group = std::min(kGroup, count - base);
    int hits = 0;
    for (int i = 0; i < group; ++i) hits += !(v[base + i] <= tau);
    if (hits == 0) continue;
    for (int i = 0; i < group; ++i)
      if (!(v[base + i] <= tau))
        keys[found++] = order_key(v[base + i], first + static_cast<uint32_t>(base + i));
  }
  return found;
}

// The running best k of one row. Latents arrive in ascending order, so a later entry equal to the
// k-th value can never replace it and a strict comparison is exact.
class RunningTopk {
 public:
  RunningTopk(int64_t k, int64_t capacity) : k_(k), keys_(static_cast<size_t>(capacity)) {}

  void add(const float* v, int count, uint32_t first) {
    if (used_ + count > static_cast<int64_t>(keys_.size())) compact();
    used_ += append_above(v, count, tau_, first, keys_.data() + used_);
  }

  void finish(float* value, int32_t* latent) {
    compact();
    std::sort(keys_.begin(), keys_.begin() + used_, std::greater<>());
    for (int64_t p = 0; p < used_; ++p) {
      value[p] = key_value(keys_[static_cast<size_t>(p)]);
      latent[p] = static_cast<int32_t>(key_position(keys_[static_cast<size_t>(p)]));
    }
    // Values of -inf never enter: what is missing is padding, which nothing selects.
    for (int64_t p = used_; p < k_; ++p) {
      value[p] = -std::numeric_limits<float>::infinity();
      latent[p] = 0;
    }
    used_ = 0;
    tau_ = -std::numeric_limits<float>::infinity();
  }

 private:
  void compact() {
    if (used_ <= k_) return;
    std::nth_element(keys_.begin(), keys_.begin() + (k_ - 1), keys_.begin() + used_,
                     std::greater<>());
    used_ = k_;
    tau_ = key_value(keys_[static_cast<size_t>(k_ - 1)]);
  }

  int64_t k_, used_ = 0;
  float tau_ = -std::numeric_limits<float>::infinity();
  std::vector<uint64_t> keys_;
};

}  // namespace

Candidates cpu_topk(const EncodeArgs& args, int64_t k) {
  const int64_t rows = args.x_bd.size(0), l = args.w_enc_ld.size(0), kept = std::min(k, l);
  Candidates out{at::empty({rows, kept}, at::kFloat), at::empty({rows, kept}, at::kInt)};
  float* value = out.value.mutable_data_ptr<float>();
  int32_t* latent = out.latent.mutable_data_ptr<int32_t>();
  const int64_t capacity = std::max<int64_t>(512, 2 * kept) + kTileLatents;
  for_each_block(rows, [&](int64_t begin, int64_t end) {
    std::vector<RunningTopk> best(static_cast<size_t>(end - begin), RunningTopk(kept, capacity));
    for_each_tile(args, begin, end, [&](int64_t row, int64_t first, const float* v, int count) {
      best[static_cast<size_t>(row - begin)].add(v, count, static_cast<uint32_t>(first));
    });
    for (int64_t row = begin; row < end; ++row)
      best[static_cast<size_t>(row - begin)].finish(value + row * kept, latent + row * kept);
  });
  return out;
}

Codes cpu_positive(const EncodeArgs& args) {
  struct Entry {
    int32_t latent;
    float value;
  };
  const int64_t rows = args.x_bd.size(0);
  std::vector<std::vector<Entry>> entries(static_cast<size_t>(rows));
  for_each_block(rows, [&](int64_t begin, int64_t end) {
    for_each_tile(args, begin, end, [&](int64_t row, int64_t first, const float* v, int count) {
      auto& mine = entries[static_cast<size_t>(row)];
      for (int i = 0; i < count; ++i)
        if (!(v[i] <= 0)) mine.push_back({static_cast<int32_t>(first + i), v[i]});
    });
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
    for (const Entry& entry : entries[static_cast<size_t>(row)]) {
      latent[at] = entry.latent;
      value[at++] = entry.value;
    }
  }
  return codes;
}

}  // namespace megadict
