// Which latents count as dead, on every mesh; what is logged of it; which of them compete in AuxK.
#include "train/dead.h"

#include <gtest/gtest.h>

#include <numeric>

#include "comm/backends.h"
#include "model/auxk.h"
#include "support/mpi_main.h"
#include "support/train_bench.h"

namespace megadict {
namespace {

Case topk_of(int64_t batch) {
  return {"topk", "topk", "linear", batch, 0, 0};
}

// Steps that leave the weights as they are, over consecutive parts of the rows.
at::Tensor counters_after(const Problem& p, int64_t batch, Communicator& world,
                          const MeshConfig& shape) {
  const Case c = topk_of(batch);
  Bench bench(c, p, world, shape);
  bench.config.optim.lr = 0;
  bench.state.tokens = 0;
  bench.state.tokens_since_fired_l.zero_();
  StepWorkspace workspace = make_workspace(bench.state, c.encode);
  for (int64_t begin = 0; begin < p.x_bd.size(0); begin += batch) {
    bench.problem.x_bd = p.x_bd.narrow(0, begin, batch);
    step_of(bench, c, workspace);
  }
  return bench.state.tokens_since_fired_l;
}

at::Tensor alone(const Problem& p, int64_t batch) {
  std::unique_ptr<Communicator> self = make_self_communicator("world");
  return counters_after(p, batch, *self, {1, 1});
}

constexpr int64_t kLatents = 1031;

// Few active latents of many: some never fire.
Problem few_fire() {
  Problem p = gaussian_problem(1, kLatents, 24, 256);
  p.b_enc_n = random({kLatents}, 3) * 3;
  return p;
}

TEST(DeadCounters, AreThoseOfOneRankOnEveryMesh) {
  const Problem p = few_fire();
  const at::Tensor wanted = alone(p, 64);
  EXPECT_GT(wanted.eq(256).sum().item<int64_t>(), 100);
  for (const MeshConfig& shape : meshes_of_ranks(test_world().size())) {
    const Mesh mesh = make_mesh(test_world(), shape);
    const Range mine = shard_of(kLatents, mesh.feature_size(), mesh.feature_index);
    EXPECT_TRUE(at::equal(counters_after(p, 64, test_world(), shape),
                          wanted.narrow(0, mine.begin, mine.size())))
        << mesh.name();
  }
}

TEST(DeadCounters, CountTokensNotSteps) {
  const Problem p = few_fire();
  EXPECT_TRUE(at::equal(alone(p, 64).ge(256), alone(p, 256).ge(256)));
}

TEST(DeadCounters, WhatIsSelectedAtZeroHasNotFiredAndSizeDoesNotMatter) {
  Problem p = few_fire();
  Problem small = p;
  for (at::Tensor* t : {&small.x_bd, &small.b_enc_n, &small.b_dec_d}) *t = *t * 0x1p-14;
  EXPECT_TRUE(at::equal(alone(small, 64), alone(p, 64)));
  p.b_enc_n = at::full({kLatents}, -1e6);
  EXPECT_TRUE(alone(p, 64).eq(256).all().item<bool>());
}

TEST(DeadCounters, HistogramHoldsEveryLatentOnceOnEveryMesh) {
  for (const MeshConfig& shape : meshes_of_ranks(test_world().size())) {
    const Case c = topk_of(61);
    Bench bench(c, small_problem(c), test_world(), shape);
    // Global latent i was last seen after 0, 1, 9, 10, 99, ... rows.
    const std::vector<int64_t> since = {0, 1, 9, 10, 99, 100, 12'345, 1'000'000'000'000'000};
    const Range mine = bench.state.dictionary.latents;
    for (int64_t i = 0; i < mine.size(); ++i)
      bench.state.tokens_since_fired_l[i] = since[static_cast<size_t>((mine.begin + i) % 8)];
    const DeadCounts counts = count_dead(bench.mesh, bench.state, 100);
    // 131 = 16 x 8 + 3 latents
    const std::array<int64_t, 17> wanted = {17, 34, 32, 16, 0, 16, 0, 0, 0,
                                            0,  0,  0,  0,  0, 0,  0, 16};
    EXPECT_EQ(counts.since_fired, wanted) << bench.mesh.name();
    EXPECT_EQ(counts.dead, 48);
    bench.state.tokens = 99;
    EXPECT_EQ(count_dead(bench.mesh, bench.state, 100).dead, -1);
  }
}

// Global ids of those that compete in a step, of all shards.
at::Tensor competing(const Mesh& mesh, const Dictionary& d, const at::Tensor& dead_l, int64_t most,
                     int64_t step, AuxK& aux) {
  aux = make_auxk(mesh, dead_l, 9, Sums::fast, {most, 5, step});
  EXPECT_EQ(aux.dead_of_shard[static_cast<size_t>(mesh.feature_index)], aux.dead_l.size(0));
  at::Tensor chosen = at::zeros({d.n}, at::kLong);
  chosen.index_fill_(0, aux.dead_l + d.latents.begin, 1);
  mesh.feature->all_reduce(view_of(chosen), ReduceOp::sum, "chosen");
  return chosen;
}

TEST(AuxkStrata, AreBoundedTakeTurnsAndAreTheSameOnEveryMesh) {
  constexpr int64_t kMost = 12;
  const Case c = topk_of(61);
  std::unique_ptr<Communicator> self = make_self_communicator("world");
  const Bench one(c, small_problem(c), *self, {1, 1});
  AuxK aux;
  for (const MeshConfig& shape : meshes_of_ranks(test_world().size())) {
    Bench bench(c, small_problem(c), test_world(), shape);
    const Dictionary& d = bench.state.dictionary;
    const at::Tensor dead = dead_mask(bench.state, Bench::kWindow);
    at::Tensor turns = at::zeros({d.n}, at::kLong);
    for (int64_t step = 0; step < 60; ++step) {
      const at::Tensor chosen = competing(bench.mesh, d, dead, kMost, step, aux);
      EXPECT_LE(chosen.sum().item<int64_t>(), kMost);
      EXPECT_EQ(aux.n_dead, 44);
      EXPECT_EQ(aux.k, 9);
      turns += chosen;
      AuxK of_one;
      EXPECT_TRUE(
          at::equal(chosen, competing(one.mesh, one.state.dictionary,
                                      dead_mask(one.state, Bench::kWindow), kMost, step, of_one)));
    }
    EXPECT_TRUE(at::equal(turns.gt(0), bench.problem.dead_n())) << bench.mesh.name();
    EXPECT_TRUE(at::equal(competing(bench.mesh, d, dead, 44, 0, aux),
                          bench.problem.dead_n().to(at::kLong)));
  }
}

}  // namespace
}  // namespace megadict
