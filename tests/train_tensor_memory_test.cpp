// What a step through the tensor kernels needs beside the state: a bound that does not grow with
// the latents times anything. Counted in bytes of tensors that live at the same time.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/Allocator.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>

#include "comm/backends.h"
#include "kernels/tensor_kernels.h"
#include "support/train_bench.h"

namespace megadict {
namespace {

// CPU tensors' bytes: those alive, and the most that ever were since reset_peak().
class CountedMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    auto* block = static_cast<char*>(std::aligned_alloc(kHeader, round_up(bytes) + kHeader));
    if (block == nullptr) throw std::bad_alloc();
    *reinterpret_cast<size_t*>(block) = bytes;
    const int64_t now = live += static_cast<int64_t>(bytes);
    int64_t before = peak;
    while (before < now && !peak.compare_exchange_weak(before, now)) {
    }
    return {block + kHeader, block + kHeader, &give_back, at::Device(at::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t count) const override {
    default_copy_data(to, from, count);
  }
  static int64_t reset_peak() { return peak = live.load(); }
  static inline std::atomic<int64_t> live = 0, peak = 0;

 private:
  static constexpr size_t kHeader = 64;
  static size_t round_up(size_t bytes) { return (bytes + kHeader - 1) / kHeader * kHeader; }
  static void give_back(void* data) {
    char* block = static_cast<char*>(data) - kHeader;
    live -= static_cast<int64_t>(*reinterpret_cast<size_t*>(block));
    std::free(block);
  }
};

constexpr int64_t kWidth = 96, kRows = 300, kActive = 8, kWork = int64_t{1} << 20;

const KernelSet kBounded = tensor_kernel_set<kWork>("tensor");

struct Bytes {
  int64_t state = 0, more = 0;  // more: at the peak of a step
};

// `clip`: by gradient tensors, which live as long as the run and are not counted.
Bytes bytes_of_a_step(int64_t latents, const char* decoder, const char* optimiser,
                      const KernelSet* kernel_set = &kBounded, bool clip = false) {
  static CountedMemory memory;
  c10::SetAllocator(at::kCPU, &memory, /*priority=*/9);
  const Case c{"", "topk", decoder, kRows, 0, 0, "fp32", "tokens", "adam", kernel_set};
  const KernelsOf kernels(c);
  const at::Tensor w_dec = unit_rows(random({latents, kWidth}, 1));
  Problem p{kActive,
            9,
            0,
            20,
            w_dec,
            w_dec,
            at::zeros({latents}),
            at::zeros({kWidth}),
            random({kRows, kWidth}, 5)};
  std::unique_ptr<Communicator> self = make_self_communicator("world");
  Bench bench(c, p, *self, {1, 1});
  bench.config.optim.name = optimiser;
  if (clip) bench.config.optim.clip_norm = 1e-3;
  reset_optimiser(bench.mesh, optimiser_named(optimiser), false, bench.state);
  StepWorkspace workspace = make_workspace(bench.state, c.encode);
  Bytes most;
  for (int step = 0; step < 2; ++step) {
    const int64_t before = CountedMemory::reset_peak();
    train_step(
        bench.mesh, bench.config, [&] { return bench.micro(c, 0); }, false, bench.state, workspace);
    if (!clip || step > 0) most.more = std::max(most.more, CountedMemory::peak - before);
  }
  const Dictionary& d = bench.state.dictionary;
  for (const at::Tensor& t : {d.w_enc_ld, d.w_dec_ld, bench.state.w_enc.m, bench.state.w_enc.v,
                              bench.state.w_dec.m, bench.state.w_dec.v})
    if (t.defined()) most.state += static_cast<int64_t>(t.nbytes());
  return most;
}

class TensorMemory : public testing::TestWithParam<std::tuple<const char*, const char*>> {};

TEST_P(TensorMemory, DoesNotGrowWithTheDictionary) {
  const auto& [decoder, optimiser] = GetParam();
  // x, x - b_dec, reconstruction, residual, gradient, in fp32 and some in double: eight times x.
  // Codes, by row and by latent, sorted and looked up: 256 bytes an entry. Lists of latents: where
  // each begins, where it was last touched: 64 bytes a latent, whatever the width.
  const auto bound = [](int64_t latents) {
    return kWork + 8 * 4 * kRows * kWidth + 256 * kRows * kActive + 64 * latents;
  };
  const Bytes few = bytes_of_a_step(3'001, decoder, optimiser),
              many = bytes_of_a_step(12'007, decoder, optimiser);
  RecordProperty("few", static_cast<int>(few.more));
  RecordProperty("many", static_cast<int>(many.more));
  EXPECT_LE(few.more, bound(3'001));
  EXPECT_LE(many.more, bound(12'007));

  EXPECT_LE(many.more - few.more, 64 * (12'007 - 3'001));
}

// As many gradients as numbers in the dictionary are what `plan` counts, and no second copy of
// them. Both sizes are beyond the blocks in which squares are summed.
TEST_P(TensorMemory, OfAClippedStepDoesNotGrowEither) {
  const auto& [decoder, optimiser] = GetParam();
  at::set_num_threads(1);
  for (const KernelSet* set : {&kBounded, &kCpuKernels}) {
    const Bytes few = bytes_of_a_step(12'007, decoder, optimiser, set, true),
                many = bytes_of_a_step(24'001, decoder, optimiser, set, true);
    EXPECT_LE(many.more - few.more, 64 * (24'001 - 12'007)) << set->name;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, TensorMemory,
                         testing::Combine(testing::Values("linear", "tied"),
                                          testing::Values("adam", "adam_b1_0", "sign_sgd")),
                         [](const auto& row) {
                           return std::string(std::get<0>(row.param)) + "_" +
                                  std::get<1>(row.param);
                         });

}  // namespace
}  // namespace megadict
