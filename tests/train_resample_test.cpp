// Dead latents start anew from the same rows, with the same bits, on every mesh; nothing else
// changes.
#include "train/resample.h"

#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "comm/backends.h"
#include "data/shard_writer.h"
#include "io/file.h"
#include "support/mpi_main.h"
#include "support/temp_folder.h"
#include "support/train_bench.h"

namespace megadict {
namespace {

using test::error_of;
using test::TempFolder;

constexpr int64_t kRows = 301;  // divides by no mesh
constexpr int64_t kStep = 7;

// Each rank its own copy of the rows.
struct Shards {
  TempFolder folder;
  at::Tensor x_bd;
  ShardIndex index;
  explicit Shards(const at::Tensor& x) : x_bd(x.contiguous()) {
    const std::string at = folder / "rows";
    make_folders(at);
    ShardWriter writer(at + "/a.h5", {x_bd.size(1), DType::f32, "m", "h", "t", 0}, 64);
    writer.append({x_bd.const_data_ptr<float>(), x_bd.size(0)});
    writer.finish();
    index = ShardIndex::open(at);
  }
  std::vector<int64_t> all() const {
    std::vector<int64_t> ids(static_cast<size_t>(x_bd.size(0)));
    std::iota(ids.begin(), ids.end(), 0);
    return ids;
  }
};

struct Trial {
  Case c;
  bool average = false;
  double threshold = 0;
  Normalization normalization = {};
};

std::vector<Moments> moments_of(const TrainState& state) {
  return {state.w_enc, state.w_dec, state.b_enc};
}

// Every number of the optimiser and of the averages is 1 before the draw.
Bench before_draw(const Trial& trial, Communicator& world, const MeshConfig& shape) {
  Bench bench(trial.c, small_problem(trial.c), world, shape);
  TrainState& state = bench.state;
  const at::Tensor counters = state.tokens_since_fired_l;
  reset_optimiser(bench.mesh, optimiser_named(trial.c.optimiser), trial.average, state);
  state.tokens_since_fired_l = counters;
  state.step = kStep;
  state.normalization = trial.normalization;
  for (const Moments& moments : moments_of(state))
    for (const at::Tensor& t : {moments.m, moments.v})
      if (t.defined()) t.fill_(1);
  return bench;
}

Resampled draw_on(const Trial& trial, const Shards& rows, Bench& bench, uint64_t seed = 3) {
  const std::vector<int64_t> ids = rows.all();
  return resample_dead(bench.mesh,
                       {.data = rows.index,
                        .rows = ids,
                        .block_rows = 64,
                        .window_tokens = Bench::kWindow,
                        .seed = seed,
                        .threshold = trial.threshold},
                       nullptr, bench.state);
}

struct Named {
  const char* name;
  at::Tensor tensor;
};

// Of the whole shard, and of the own latents alone.
std::vector<Named> of_shard(const TrainState& s) {
  const Dictionary& d = s.dictionary;
  return {{"W_enc", d.w_enc_ld},
          {"W_dec", d.w_dec_ld},
          {"b_enc", d.b_enc_l},
          {"counters", s.tokens_since_fired_l}};
}

std::vector<Named> of_own(const TrainState& s) {
  return {{"m W_enc", s.w_enc.m},         {"v W_enc", s.w_enc.v},
          {"m W_dec", s.w_dec.m},         {"v W_dec", s.w_dec.v},
          {"m b_enc", s.b_enc.m},         {"v b_enc", s.b_enc.v},
          {"last step", s.last_step_l},   {"average W_enc", s.ema_w_enc},
          {"average W_dec", s.ema_w_dec}, {"average b_enc", s.ema_b_enc}};
}

void expect_part(const std::vector<Named>& mine, const std::vector<Named>& alone, Range part,
                 const std::string& where) {
  for (size_t i = 0; i < mine.size(); ++i) {
    ASSERT_EQ(mine[i].tensor.defined(), alone[i].tensor.defined()) << where << mine[i].name;
    if (!mine[i].tensor.defined()) continue;
    EXPECT_TRUE(at::equal(mine[i].tensor, alone[i].tensor.narrow(0, part.begin, part.size())))
        << where << ": " << mine[i].name;
  }
}

class Resample : public testing::TestWithParam<Trial> {
 protected:
  Shards rows_{random({kRows, 24}, 8) + 0.3};
  std::unique_ptr<Communicator> self_ = make_self_communicator("world");
};

TEST_P(Resample, EveryMeshWritesTheBitsOfOneRank) {
  const Trial& trial = GetParam();
  Bench alone = before_draw(trial, *self_, {1, 1});
  const Resampled wanted = draw_on(trial, rows_, alone);
  EXPECT_EQ(wanted.latents, 44);  // every third of 131
  for (const MeshConfig& shape : meshes_of_ranks(test_world().size())) {
    Bench bench = before_draw(trial, test_world(), shape);
    const Resampled done = draw_on(trial, rows_, bench);
    const std::string where = std::string(trial.c.name) + " on " + bench.mesh.name();
    EXPECT_EQ(done.latents, wanted.latents) << where;
    EXPECT_EQ(done.distinct_rows, wanted.distinct_rows) << where;
    const Range mine = bench.state.dictionary.latents, own = bench.state.own;
    expect_part(of_shard(bench.state), of_shard(alone.state), mine, where);
    expect_part(of_own(bench.state), of_own(alone.state),
                {mine.begin + own.begin, mine.begin + own.end}, where);
  }
}

// The formula, and that the rest is as it was.
TEST_P(Resample, WritesWhatItDrewAndNothingElse) {
  const Trial& trial = GetParam();
  const Bench old = before_draw(trial, *self_, {1, 1});
  Bench bench = before_draw(trial, *self_, {1, 1});
  const Resampled done = draw_on(trial, rows_, bench);
  const TrainState &was = old.state, &is = bench.state;
  const at::Tensor dead = was.tokens_since_fired_l.ge(Bench::kWindow);
  const at::Tensor latents = at::tensor(done.of_shard, at::kLong);
  ASSERT_TRUE(at::equal(latents, dead.nonzero().squeeze(1)));
  const at::Tensor x = normalized(
      rows_.x_bd.index_select(0, at::tensor(done.row_of_shard, at::kLong)), trial.normalization);
  const at::Tensor v = unit_rows((x - was.dictionary.b_dec_d).to(at::kDouble));
  const at::Tensor alive = dead.logical_not().nonzero().squeeze(1);
  const double mean = was.dictionary.w_enc_ld.index_select(0, alive)
                          .to(at::kDouble)
                          .norm(2, 1)
                          .mean()
                          .item<double>();
  const double scale = trial.c.tied() ? std::sqrt(0.2) : 0.2;
  const auto drawn = [&](const at::Tensor& t) {
    return t.index_select(0, latents).to(at::kDouble);
  };
  EXPECT_TRUE(at::allclose(drawn(is.dictionary.w_enc_ld), v * (scale * mean), 1e-6, 1e-7));
  if (!trial.c.tied()) {
    EXPECT_TRUE(at::allclose(drawn(is.dictionary.w_dec_ld), v, 1e-6, 1e-7));
  }
  EXPECT_TRUE(drawn(is.dictionary.b_enc_l).eq(0).all().item<bool>());
  EXPECT_TRUE(drawn(is.tokens_since_fired_l).eq(0).all().item<bool>());
  const auto zero_there_alone = [&](const at::Tensor& t) {
    if (!t.defined()) return;
    EXPECT_TRUE(drawn(t).eq(0).all().item<bool>());
    EXPECT_TRUE(t.index_select(0, alive).eq(1).all().item<bool>());
  };
  for (const Moments& moments : moments_of(is)) {
    zero_there_alone(moments.m);
    zero_there_alone(moments.v);
  }
  if (is.last_step_l.defined()) {
    EXPECT_TRUE(drawn(is.last_step_l).eq(kStep).all().item<bool>());
  }
  if (trial.average) {
    EXPECT_TRUE(at::equal(is.ema_w_enc.index_select(0, latents),
                          is.dictionary.w_enc_ld.index_select(0, latents)));
  }
  const std::vector<Named> now = of_shard(is), then = of_shard(was);
  for (size_t i = 0; i < now.size(); ++i)
    EXPECT_TRUE(
        at::equal(now[i].tensor.index_select(0, alive), then[i].tensor.index_select(0, alive)))
        << now[i].name;
  EXPECT_TRUE(at::equal(is.dictionary.b_dec_d, was.dictionary.b_dec_d));
  EXPECT_EQ(is.resampled_at, kStep);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, Resample,
    testing::Values(Trial{{"topk", "topk", "linear", 61, 0, 0}},
                    Trial{{"topk_lazy_average", "topk", "linear", 61, 0, 0, "fp32", "tokens",
                           "adam_b1_0"},
                          true},
                    Trial{{"topk_tied_average", "topk", "tied", 61, 0, 0}, true},
                    Trial{{"topk_normalised", "topk", "linear", 61, 0, 0},
                          false,
                          0,
                          {0.37, std::vector<float>(24, 0.2F)}},
                    Trial{{"relu_sign", "relu", "linear", 61, 0, 0, "fp32", "tokens", "sign_sgd"}},
                    Trial{{"batchtopk", "batchtopk", "linear", 61, 0, 0}, false, 0.4}),
    [](const auto& row) { return row.param.c.name; });

const Trial kTopk{{"topk", "topk", "linear", 61, 0, 0}};

// With no code the loss is |x - b_dec|^2: one row 2 away from b_dec and three 1 away have the
// weights 16, 1, 1, 1.
TEST(ResampleDraw, IsProportionalToTheSquareOfTheLoss) {
  at::Tensor x = at::eye(24).narrow(0, 0, 4).contiguous();
  x[0].mul_(2);
  std::unique_ptr<Communicator> self = make_self_communicator("world");
  Bench bench = before_draw(kTopk, *self, {1, 1});
  Dictionary& d = bench.state.dictionary;
  const Shards rows(x + d.b_dec_d);
  constexpr int kDraws = 600;
  std::map<int64_t, int> drawn;
  for (int step = 0; step < kDraws; ++step) {
    bench.state.step = step;
    d.w_enc_ld.fill_(0);
    d.b_enc_l.fill_(-1);
    bench.state.tokens_since_fired_l.fill_(0)[5] = Bench::kWindow;
    ++drawn[draw_on(kTopk, rows, bench).row_of_shard.at(0)];
  }
  EXPECT_NEAR(drawn[0] / double{kDraws}, 16.0 / 19, 0.05);
  for (int row = 1; row < 4; ++row) EXPECT_NEAR(drawn[row] / double{kDraws}, 1.0 / 19, 0.03);
}

TEST(ResampleDraw, NoDeadLatentsAreNoWork) {
  const Shards rows(random({kRows, 24}, 8));
  for (const MeshConfig& shape : meshes_of_ranks(test_world().size())) {
    Bench bench = before_draw(kTopk, test_world(), shape);
    bench.state.tokens_since_fired_l.fill_(Bench::kWindow - 1);
    const at::Tensor w_enc = bench.state.dictionary.w_enc_ld.clone();
    EXPECT_EQ(draw_on(kTopk, rows, bench).latents, 0);
    EXPECT_TRUE(at::equal(bench.state.dictionary.w_enc_ld, w_enc));
    EXPECT_EQ(bench.state.resampled_at, -1);
  }
}

TEST(ResampleDraw, FewerRowsThanDeadLatentsAreSharedAndAllDeadIsFine) {
  const Shards rows(random({5, 24}, 8));
  for (const MeshConfig& shape : meshes_of_ranks(test_world().size())) {
    Bench bench = before_draw(kTopk, test_world(), shape);
    bench.state.tokens_since_fired_l.fill_(Bench::kWindow);
    const Resampled done = draw_on(kTopk, rows, bench);
    EXPECT_EQ(done.latents, 131);
    EXPECT_LE(done.distinct_rows, 5);
    EXPECT_GE(done.distinct_rows, 2);
    EXPECT_TRUE(bench.state.dictionary.w_enc_ld.isfinite().all().item<bool>());
    EXPECT_TRUE(at::allclose(norms_of_rows(bench.state.dictionary.w_dec_ld),
                             at::ones({bench.state.dictionary.latents.size()}, at::kDouble)));
  }
}

TEST(ResampleDraw, LossesThatAreNotFiniteEndTheRunOnEveryRank) {
  const Shards rows(random({kRows, 24}, 8));
  for (const MeshConfig& shape : meshes_of_ranks(test_world().size())) {
    Bench bench = before_draw(kTopk, test_world(), shape);
    bench.state.dictionary.b_dec_d[3] = std::numeric_limits<float>::infinity();
    const Error error = error_of([&] { draw_on(kTopk, rows, bench); });
    EXPECT_EQ(error.code(), ExitCode::diverged);
    EXPECT_TRUE(error.agreed());
  }
}

TEST(RowsToCome, AreWholeBatchesFromTheStepOnAndNoneTwice) {
  const Shards rows(random({kRows, 24}, 8));
  DataConfig config;
  config.batch_size = 50;
  config.micro_batch_size = 20;
  config.tokens = 600;  // two epochs of six batches
  const BatchPlan plan(rows.index, config, 1);
  std::vector<int64_t> wanted;
  for (int64_t step : {4, 5})
    for (int64_t micro = 0; micro < plan.micro_batches(step); ++micro) {
      const std::vector<int64_t> more = plan.rows(step, micro);
      wanted.insert(wanted.end(), more.begin(), more.end());
    }
  std::sort(wanted.begin(), wanted.end());
  EXPECT_EQ(rows_to_come(plan, 4, 51), wanted);
  const std::vector<int64_t> all = rows_to_come(plan, 10, 1'000'000);  // more than there are
  EXPECT_LE(all.size(), 300U);
  EXPECT_EQ(std::adjacent_find(all.begin(), all.end()), all.end());
  EXPECT_EQ(rows_to_come(plan, 0, 1'000'000).size(), 300U);
}

TEST(ResampleSteps, AreNeverAnIntervalOrAList) {
  EXPECT_FALSE(resample_steps("never").due(1000));
  const ResampleSteps every = resample_steps("every:10");
  EXPECT_TRUE(every.due(10) && every.due(50));
  EXPECT_FALSE(every.due(0) || every.due(15));
  const ResampleSteps listed = resample_steps("3,20");
  EXPECT_TRUE(listed.due(3) && listed.due(20));
  EXPECT_FALSE(listed.due(4));
  for (const char* bad : {"", "0", "-1", "every:", "every:0", "every:x", "5,", "5,5", "7,3", "5 6",
                          "1e3", "99999999999999999999"}) {
    const Error error = error_of([&] { resample_steps(bad); });
    EXPECT_EQ(error.code(), ExitCode::usage) << bad;
  }
}

TEST(LearningRate, RisesAgainAfterAResampling) {
  DeadConfig dead;
  TrainState state;
  state.step = 50;
  EXPECT_EQ(since_resampling(dead, state), 1);
  dead.resample_warmup_steps = 4;
  EXPECT_EQ(since_resampling(dead, state), 1);  // there was none
  state.resampled_at = 50;
  EXPECT_EQ(since_resampling(dead, state), 0.25);
  state.step = 53;
  EXPECT_EQ(since_resampling(dead, state), 1);
  dead.resample_warmup_steps = 0;
  EXPECT_EQ(since_resampling(dead, state), 1);
}

}  // namespace
}  // namespace megadict
