// A step in its steady state gets no large block from the system: neither for tensors nor through
// operator new, which this program counts.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <omp.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "comm/backends.h"
#include "kernels/memory.h"
#include "support/train_bench.h"

namespace {

constexpr size_t kLarge = 64 << 10;
std::atomic<bool> counting = false;
std::atomic<int> large_blocks = 0;

std::atomic<bool> failing = false;  // inside OpenMP regions

void* counted(size_t bytes) {
  if (failing && omp_in_parallel()) throw std::bad_alloc();
  if (counting && bytes > kLarge) ++large_blocks;
  if (void* block = std::malloc(bytes)) return block;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(size_t bytes) {
  return counted(bytes);
}
void* operator new[](size_t bytes) {
  return counted(bytes);
}
void operator delete(void* block) noexcept {
  std::free(block);
}
void operator delete[](void* block) noexcept {
  std::free(block);
}
void operator delete(void* block, size_t) noexcept {
  std::free(block);
}
void operator delete[](void* block, size_t) noexcept {
  std::free(block);
}

namespace megadict {
namespace {

class SteadyState : public testing::TestWithParam<std::tuple<Case, const char*>> {};

TEST_P(SteadyState, GetsNoLargeBlock) {
  const auto& [c, optimiser] = GetParam();
  keep_tensor_memory();
  std::unique_ptr<Communicator> self = make_self_communicator("world");
  Bench bench(c, small_problem(c), *self, {1, 1});
  bench.config.optim.name = optimiser;
  reset_optimiser(bench.mesh, optimiser_named(optimiser), false, bench.state);
  StepWorkspace workspace = make_workspace(bench.state, c.encode);
  const auto step = [&] {
    MicroBatch micro = bench.micro(c, 0);
    counting = true;
    train_step(
        bench.mesh, bench.config, [&] { return std::move(micro); }, true, bench.state, workspace);
    counting = false;
  };
  for (int i = 0; i < 4; ++i) step();
  const int64_t before = memory_use().from_system;
  large_blocks = 0;
  for (int i = 0; i < 8; ++i) step();
  EXPECT_EQ(memory_use().from_system, before);
  EXPECT_EQ(large_blocks, 0);
  EXPECT_GT(memory_use().held, 0);
  release_free_memory();
  EXPECT_EQ(memory_use().free, 0);
}

struct Region {
  const char* name;
  void (*run)();
};

const Region kRegions[] = {
    {"topk",
     [] {
       kCpuKernels.topk({random({300, 24}, 1), random({131, 24}, 2), random({131}, 3)}, 5);
     }},
    {"above",
     [] {
       kCpuKernels.above({random({300, 24}, 1), random({131, 24}, 2), random({131}, 3)}, 0);
     }},
    {"kth",
     [] {
       at::Tensor tau, cut;
       kCpuKernels.kth(std::get<0>(random({3, 64, 7}, 4).sort(2, true)).contiguous(), 5, tau, cut);
     }},
    {"screen",
     [] {
       const at::Tensor w = random({131, 24}, 2), x = random({300, 24}, 1), bias = random({131}, 3);
       Screen(w, ScreenKind::int8).topk({x, w, bias}, 5);
     }},
    {"step",
     [] {
       const Case c{"step", "topk", "linear", 61, 0, 0};
       std::unique_ptr<Communicator> self = make_self_communicator("world");
       Bench bench(c, small_problem(c), *self, {1, 1});
       StepWorkspace workspace = make_workspace(bench.state, c.encode);
       step_of(bench, c, workspace);
     }},
    {"start",
     [] {
       std::unique_ptr<Communicator> self = make_self_communicator("world");
       ModelConfig model;
       model.k = 5;
       initialise(make_mesh(*self, {1, 1}), model, 131, {0, 131}, 131, random({300, 24}, 1), 0);
     }},
};

// It would end the process.
TEST(OutOfMemory, InsideARegionComesOutAsTheException) {
  at::set_num_threads(2);
  for (const Region& region : kRegions) {
    SCOPED_TRACE(region.name);
    EXPECT_NO_THROW(region.run());
    failing = true;
    EXPECT_THROW(region.run(), std::bad_alloc);
    failing = false;
    EXPECT_NO_THROW(region.run());
  }
  at::set_num_threads(1);
}

TEST(KeptMemory, LargeBlocksOfManySizesDoNotPileUp) {
  keep_tensor_memory();
  release_free_memory();
  const int64_t before = memory_use().held;
  for (int64_t mib = 70; mib < 200; mib += 3) at::empty({mib << 20}, at::kByte);
  EXPECT_LE(memory_use().held - before, int64_t{230} << 20);
  release_free_memory();
  EXPECT_EQ(memory_use().held, before);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, SteadyState,
    testing::Combine(testing::Values(Case{"topk", "topk", "linear", 4001, 0, 1.0 / 32},
                                     Case{"screened", "topk", "linear", 4001, 0, 0, "screen_int8"},
                                     Case{"tied", "topk", "tied", 4001, 0, 0}),
                     testing::Values("adam", "adam_b1_0", "sign_sgd")),
    [](const auto& of) {
      return std::string(std::get<0>(of.param).name) + "_" + std::get<1>(of.param);
    });

}  // namespace
}  // namespace megadict
