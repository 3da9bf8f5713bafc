// The sharded TopK against sorting the whole row: ties, truncated lists (narrow candidate widths
// and all winners on one shard), padding rows, shards smaller than k.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/range.h"
#include "kernels/kernel_set.h"
#include "model/topk.h"
#include "support/mpi_main.h"

namespace megadict {
namespace {

struct Problem {
  const char* name;
  int64_t n, k, slot, padding, width;
  bool ties, one_shard;
};

at::Tensor values_of(const Problem& p, int64_t rows) {
  at::Generator generator = at::detail::createCPUGenerator(7);
  at::Tensor v = p.ties ? at::randint(-2, 3, {rows, p.n}, generator).to(at::kFloat)
                        : at::randn({rows, p.n}, generator);
  // All winners among the last latents, so on the last shard.
  if (p.one_shard) v.narrow(1, p.n - p.n / 7, p.n / 7).add_(10);
  return v;
}

at::Tensor expected(const at::Tensor& v, int64_t k, int64_t real_rows) {
  const at::Tensor order = std::get<1>(v.sort(/*stable=*/true, 1, /*descending=*/true));
  at::Tensor mask = at::zeros_like(v, at::kBool);
  mask.scatter_(1, order.narrow(1, 0, std::min(k, v.size(1))), true);
  mask.narrow(0, real_rows, v.size(0) - real_rows).fill_(false);
  return (v * mask).relu();
}

at::Tensor dense(const Codes& codes) {
  at::Tensor out = at::zeros({codes.rows, codes.latents});
  const at::Tensor row = at::repeat_interleave(codes.row_start.diff());
  return out.index_put_({row, codes.latent.to(at::kLong)}, codes.value);
}

class ShardedTopk : public testing::TestWithParam<Problem> {};

TEST_P(ShardedTopk, EqualsSortingTheWholeRow) {
  const Problem p = GetParam();
  const int shards = test_world().size(), me = test_world().rank();
  std::unique_ptr<Communicator> feature = test_world().split(0, me, "feature");
  const int64_t rows = shards * p.slot, real = std::max<int64_t>(rows - p.padding, 0);
  const at::Tensor v = values_of(p, rows);
  const Range mine = shard_of(p.n, shards, me);
  // Pre-activations as they are: identity rows times the values as "weights".
  const at::Tensor x = at::eye(rows);
  const at::Tensor weights = v.narrow(1, mine.begin, mine.size()).t().contiguous();
  const at::Tensor bias = at::zeros({mine.size()});
  for (const KernelSet& set : all_kernel_sets()) {
    SelectArgs args{p.k, p.slot, real, p.width, {}};
    for (int f = 0; f < shards; ++f) args.shard_latents.push_back(shard_of(p.n, shards, f).size());
    const Codes codes = select_topk(*feature, set.topk({x, weights, bias}, p.k), args);
    EXPECT_TRUE(at::equal(dense(codes), expected(v, p.k, real).narrow(1, mine.begin, mine.size())))
        << set.name << " " << p.name << " at " << shards << " shards";
  }
}

INSTANTIATE_TEST_SUITE_P(Problems, ShardedTopk,
                         testing::Values(Problem{"plain", 100, 8, 5, 0, 0, false, false},
                                         Problem{"ties", 100, 8, 5, 2, 0, true, false},
                                         Problem{"narrow", 100, 8, 5, 1, 1, false, false},
                                         Problem{"narrow_ties", 101, 8, 5, 0, 1, true, false},
                                         Problem{"one_shard", 131, 16, 3, 0, 0, false, true},
                                         Problem{"one_shard_narrow", 131, 16, 3, 1, 2, false, true},
                                         Problem{"few_latents", 7, 7, 2, 0, 0, true, false},
                                         Problem{"k_is_n", 12, 12, 1, 0, 1, false, false},
                                         Problem{"one_latent", 6, 1, 1, 0, 1, true, false}),
                         [](const auto& row) { return row.param.name; });

TEST(CandidateWidth, FollowsTheFormula) {
  EXPECT_EQ(candidate_width(32, 1), 32);
  EXPECT_EQ(candidate_width(32, 4), 29);
  EXPECT_EQ(candidate_width(32, 8), 20);
  EXPECT_EQ(candidate_width(32, 16), 15);
  EXPECT_EQ(candidate_width(32, 32), 11);
  EXPECT_EQ(candidate_width(32, 64), 9);
}

}  // namespace
}  // namespace megadict
