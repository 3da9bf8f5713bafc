#include "kernels/rates.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <vector>

#include "base/clock.h"
#include "base/parallel_guard.h"
#include "kernels/screen_tile.h"
#include "kernels/vector_ops.h"

// Exported by libtorch_cpu.so; no second BLAS is linked.
extern "C" void sgemm_(const char* transa, const char* transb, const int* m, const int* n,
                       const int* k, const float* alpha, const float* a, const int* lda,
                       const float* b, const int* ldb, const float* beta, float* c, const int* ldc);

namespace megadict {

namespace {

// Runs `work` (returns how much it did) on every thread until the time is over.
template <class Work>
double rate_of(double seconds, Work&& work) {
  double total = 0;
  const double start = seconds_now();
  ParallelGuard guard;
#pragma omp parallel reduction(+ : total)
  guard.run([&] {
    auto mine = work();
    while (seconds_now() - start < seconds) total += mine();
  });
  guard.rethrow();
  return total / (seconds_now() - start);
}

constexpr int64_t kLargeBytes = int64_t{512} << 20;

}  // namespace

double sgemm_tile_rate(int64_t d, double seconds) {
  return rate_of(seconds, [d] {
    constexpr int kRows = 256, kLatents = 512;
    return [d, x = at::ones({kRows, d}), w = at::ones({kLatents, d}),
            c = at::zeros({kRows, kLatents})] {
      const int rows = kRows, latents = kLatents, depth = static_cast<int>(d);
      const float one = 1.0f, zero = 0.0f;
      // Row-major C = X W^T is column-major C^T = W X^T.
      sgemm_("T", "N", &latents, &rows, &depth, &one, w.const_data_ptr<float>(), &depth,
             x.const_data_ptr<float>(), &depth, &zero, c.mutable_data_ptr<float>(), &latents);
      return 2.0 * kRows * kLatents * static_cast<double>(d);
    };
  });
}

double screen_tile_rate(ScreenKind kind, int64_t d, double seconds) {
  const ScreenTile& tile = best_screen_tile(kind);
  if (tile.isa == Isa::scalar) return 0;
  return rate_of(seconds, [&tile, d] {
    constexpr int64_t kLatents = 480;
    ScreenRows w(screen_product(tile.kind), kLatents, d);
    std::vector<float> row(static_cast<size_t>(d), 1.0f), bias(kLatents, 0.0f);
    for (int64_t j = 0; j < kLatents; ++j) w.set(j, row.data());
    std::vector<uint8_t> x(static_cast<size_t>(64 * w.p), 0);
    std::vector<float> ones(64, 1.0f), never(64, 1e30f);
    return [=, &tile]() mutable {
      RowBlock block{x.data(), ones.data(), ones.data(), never.data(), nullptr, 1,
                     nullptr,  nullptr,     0,           nullptr,      nullptr};
      tile.run(w, bias.data(), 0, kLatents, block);
      return 2.0 * static_cast<double>(64 * kLatents * d);
    };
  });
}

double stream_rate(double seconds) {
  at::Tensor memory = at::ones({kLargeBytes / 4});
  float* all = memory.mutable_data_ptr<float>();
  int thread = 0;
  return rate_of(seconds, [&] {
    constexpr int64_t kPiece = int64_t{1} << 18;
    int64_t at;
#pragma omp critical
    at = thread++ * (kLargeBytes / 4 / at::get_num_threads());
    return [all, at]() mutable {
      add_scaled(all + at, 0.5f, all + at, kPiece);
      at = (at + kPiece) % (kLargeBytes / 4 - kPiece);
      return static_cast<double>(2 * 4 * kPiece);
    };
  });
}

double random_row_rate(int64_t d, double seconds) {
  const int64_t rows = kLargeBytes / 4 / d;
  const at::Tensor memory = at::ones({rows, d});
  const float* all = memory.const_data_ptr<float>();
  return rate_of(seconds, [&] {
    std::vector<float> sum(static_cast<size_t>(d));
    uint64_t next = static_cast<uint64_t>(at::get_thread_num());
    return [=]() mutable {
      for (int i = 0; i < 64; ++i) {
        next = next * 6364136223846793005u + 1442695040888963407u;
        const auto id = static_cast<int64_t>((next >> 33) % static_cast<uint64_t>(rows));
        add_scaled(sum.data(), 1.0f, all + id * d, d);
      }
      return static_cast<double>(64 * 4 * d);
    };
  });
}

}  // namespace megadict
