// Deterministic mode: after some steps the weights on every mesh are those of one rank, bit for
// bit, with one thread and, alone, with two. Without it they are not, or the test would show
// nothing.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "comm/backends.h"
#include "support/mpi_main.h"
#include "support/train_bench.h"

namespace megadict {
namespace {

constexpr int kSteps = 30;

// This rank's rows of W_enc, W_dec, b_enc and all of b_dec after the steps; `latents`: which.
struct Trained {
  Range latents;
  std::vector<at::Tensor> weights;
};

Trained train(const Case& c, Communicator& world, const MeshConfig& shape, bool deterministic) {
  Bench bench(c, small_problem(c), world, shape);
  bench.config.deterministic = deterministic;
  bench.config.optim.lr = 0.01;
  bench.config.dead.window_tokens = 4 * c.batch;
  bench.config.total_steps = kSteps;
  StepWorkspace workspace = make_workspace(bench.state, c.encode);
  for (int step = 0; step < kSteps; ++step)
    EXPECT_TRUE(step_of(bench, c, workspace).finite) << bench.mesh.name();
  const Dictionary& d = bench.state.dictionary;
  return {d.latents, {d.w_enc_ld, d.w_dec_ld, d.b_enc_l, d.b_dec_d}};
}

bool equal(const Trained& mine, const Trained& alone) {
  bool same = at::equal(mine.weights[3], alone.weights[3]);
  for (size_t i = 0; i < 3; ++i)
    same = same && at::equal(mine.weights[i],
                             alone.weights[i].narrow(0, mine.latents.begin, mine.latents.size()));
  return same;
}

class Deterministic : public testing::TestWithParam<Case> {};

TEST_P(Deterministic, EveryMeshGivesTheBitsOfOneRank) {
  const Case c = GetParam();
  std::unique_ptr<Communicator> self = make_self_communicator("world");
  at::set_num_threads(1);
  const Trained alone = train(c, *self, {1, 1}, true);
  for (const MeshConfig& shape : meshes_of_ranks(test_world().size()))
    // Two threads a rank only where there is one rank: more threads than cores would spin.
    for (int threads = 1; threads <= (test_world().size() == 1 ? 2 : 1); ++threads) {
      at::set_num_threads(threads);
      EXPECT_TRUE(equal(train(c, test_world(), shape, true), alone))
          << c.name << " on " << shape.data << "x" << shape.feature << ", " << threads
          << " threads";
    }
  at::set_num_threads(1);
}

INSTANTIATE_TEST_SUITE_P(Cases, Deterministic,
                         testing::Values(Case{"topk", "topk", "linear", 61, 0, 0},
                                         Case{"topk_auxk_lazy", "topk", "linear", 61, 0, 1.0 / 32,
                                              "fp32", "tokens", "adam_b1_0"},
                                         Case{"topk_auxk_micro", "topk", "linear", 61, 16,
                                              1.0 / 32},
                                         Case{"topk_tied", "topk", "tied", 61, 0, 1.0 / 32},
                                         Case{"relu_sign", "relu", "linear", 37, 10, 1.0 / 32,
                                              "fp32", "tokens", "sign_sgd"},
                                         Case{"one_row", "topk", "linear", 1, 0, 1.0 / 32}),
                         [](const auto& row) { return row.param.name; });

TEST(NotDeterministic, OtherMeshesGiveOtherBits) {
  if (test_world().size() == 1) return;
  const Case c{"fast", "topk", "linear", 61, 0, 0};
  std::unique_ptr<Communicator> self = make_self_communicator("world");
  at::set_num_threads(1);
  EXPECT_FALSE(equal(train(c, test_world(), {1, test_world().size()}, false),
                     train(c, *self, {1, 1}, false)));
}

TEST(Deterministic, ValuesThatAreNotFiniteEndTheStepOnEveryRank) {
  const Case c{"bad", "topk", "linear", 61, 0, 1.0 / 32};
  for (const MeshConfig& shape : meshes_of_ranks(test_world().size())) {
    Bench bench(c, small_problem(c), test_world(), shape);
    bench.config.deterministic = true;
    bench.problem.x_bd[17][3] = std::numeric_limits<float>::quiet_NaN();
    StepWorkspace workspace = make_workspace(bench.state, c.encode);
    EXPECT_FALSE(step_of(bench, c, workspace).finite) << bench.mesh.name();
    EXPECT_TRUE(bench.state.dictionary.w_dec_ld.isfinite().all().item<bool>());
  }
}

}  // namespace
}  // namespace megadict
