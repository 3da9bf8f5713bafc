// Deterministic mode: after some steps the weights on every mesh are those of one rank, bit for
// bit, with one thread and, alone, with two. Without it they are not, or the test would show
// nothing.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "comm/backends.h"
#include "support/mpi_main.h"
#include "support/train_bench.h"
#include "train/exact_b_dec.h"

namespace megadict {
namespace {

constexpr int kSteps = 30;

// What a run has besides its case.
struct Trial {
  Case c;
  DType rows = DType::f32;
  double ema = 0;
  bool normalise = false;  // centred and scaled
  int64_t stratum = 0;     // dead.auxk_stratum
};

// This rank's rows of W_enc, W_dec, b_enc and all of b_dec after the steps; with ema also their
// averages, of the rows it owns. `latents`, `own`: which.
struct Trained {
  Range latents, own;
  std::vector<at::Tensor> weights, averages;
  double threshold;
};

Trained train(const Trial& run, Communicator& world, const MeshConfig& shape, bool deterministic) {
  const Case& c = run.c;
  Bench bench(c, small_problem(c), world, shape);
  TrainState& state = bench.state;
  bench.stored = run.rows;
  bench.config.deterministic = deterministic;
  bench.config.optim.lr = 0.01;
  bench.config.dead.window_tokens = 4 * c.batch;
  bench.config.dead.auxk_stratum = run.stratum;
  bench.config.total_steps = kSteps;
  if (run.normalise)
    state.normalization = {0.37, std::vector<float>(static_cast<size_t>(state.dictionary.d), 0.2f)};
  if (run.ema > 0) {
    const at::Tensor counters = state.tokens_since_fired_l;
    reset_optimiser(bench.mesh, optimiser_named(c.optimiser), true, state);
    state.tokens_since_fired_l = counters;
    bench.config.optim.ema = run.ema;
  }
  StepWorkspace workspace = make_workspace(state, c.encode);
  for (int step = 0; step < kSteps; ++step)
    EXPECT_TRUE(step_of(bench, c, workspace).finite) << bench.mesh.name();
  const Dictionary& d = state.dictionary;
  Trained out{d.latents,
              {d.latents.begin + state.own.begin, d.latents.begin + state.own.end},
              {d.w_enc_ld, d.w_dec_ld, d.b_enc_l, d.b_dec_d},
              {},
              d.threshold};
  out.weights.insert(out.weights.end(), d.extra_l.begin(), d.extra_l.end());
  if (run.ema > 0) {
    out.averages = {state.ema_w_enc, d.tied() ? state.ema_w_enc : state.ema_w_dec, state.ema_b_enc,
                    state.ema_b_dec};
    out.averages.insert(out.averages.end(), state.ema_extra.begin(), state.ema_extra.end());
    EXPECT_FALSE(at::equal(out.averages[3], d.b_dec_d));
  }
  return out;
}

// `alone`: of all latents.
bool equal(const std::vector<at::Tensor>& mine, Range latents,
           const std::vector<at::Tensor>& alone) {
  if (mine.empty()) return alone.empty();
  bool same = at::equal(mine[3], alone[3]);
  for (size_t i = 0; i < mine.size(); ++i)
    if (i != 3)
      same = same && at::equal(mine[i], alone[i].narrow(0, latents.begin, latents.size()));
  return same;
}

bool equal(const Trained& mine, const Trained& alone) {
  return mine.threshold == alone.threshold && equal(mine.weights, mine.latents, alone.weights) &&
         equal(mine.averages, mine.own, alone.averages);
}

class Deterministic : public testing::TestWithParam<Trial> {};

TEST_P(Deterministic, EveryMeshGivesTheBitsOfOneRank) {
  const Trial run = GetParam();
  std::unique_ptr<Communicator> self = make_self_communicator("world");
  at::set_num_threads(1);
  const Trained alone = train(run, *self, {1, 1}, true);
  for (const MeshConfig& shape : meshes_of_ranks(test_world().size()))
    // Two threads a rank only where there is one rank: more threads than cores would spin.
    for (int threads = 1; threads <= (test_world().size() == 1 ? 2 : 1); ++threads) {
      at::set_num_threads(threads);
      EXPECT_TRUE(equal(train(run, test_world(), shape, true), alone))
          << run.c.name << " on " << shape.data << "x" << shape.feature << ", " << threads
          << " threads";
    }
  at::set_num_threads(1);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, Deterministic,
    testing::Values(
        Trial{{"topk", "topk", "linear", 61, 0, 0}},
        Trial{{"topk_auxk_lazy", "topk", "linear", 61, 0, 1.0 / 32, "fp32", "tokens", "adam_b1_0"}},
        Trial{{"topk_auxk_micro", "topk", "linear", 61, 16, 1.0 / 32}},
        Trial{{"topk_auxk_strata", "topk", "linear", 61, 16, 1.0 / 32}, DType::f32, 0, false, 10},
        Trial{{"topk_tied", "topk", "tied", 61, 0, 1.0 / 32}},
        Trial{{"relu_sign", "relu", "linear", 37, 10, 1.0 / 32, "fp32", "tokens", "sign_sgd"}},
        Trial{{"one_row", "topk", "linear", 1, 0, 1.0 / 32}},
        Trial{{"batchtopk_ema", "batchtopk", "linear", 61, 0, 1.0 / 32}, DType::f32, 0.9},
        Trial{{"matryoshka", "batchtopk", "linear", 61, 0, 1.0 / 32, "fp32", "tokens", "adam",
               nullptr, "1,0.25,70,129"}},
        Trial{{"jumprelu_micro_ema", "jumprelu", "linear", 61, 16, 1.0 / 32, "fp32", "tokens",
               "adam", nullptr, "", 20},
              DType::f32,
              0.9},
        Trial{{"jumprelu_lazy_matryoshka", "jumprelu", "linear", 61, 0, 0, "fp32", "tokens",
               "adam_b1_0", nullptr, "0.25,70"}},
        Trial{{"jumprelu_preact", "jumprelu", "linear", 61, 16, 1.0 / 32, "fp32", "tokens",
               "adam_b1_0", nullptr, "0.25,70", 20, 0.3, true}},
        Trial{{"gated_micro_ema", "gated", "linear", 61, 16, 1.0 / 32}, DType::f32, 0.9},
        Trial{{"gated_lazy_tied", "gated", "tied", 61, 0, 0, "fp32", "tokens", "adam_b1_0"}},
        Trial{{"half_normalised", "topk", "linear", 61, 16, 0}, DType::f16, 0, true},
        Trial{{"bfloat_tied_ema", "topk", "tied", 61, 0, 0}, DType::bf16, 0.99, true}),
    [](const auto& row) { return row.param.c.name; });

TEST(NotDeterministic, OtherMeshesGiveOtherBits) {
  if (test_world().size() == 1) return;
  const Trial run{{"fast", "topk", "linear", 61, 0, 0}};
  std::unique_ptr<Communicator> self = make_self_communicator("world");
  at::set_num_threads(1);
  EXPECT_FALSE(equal(train(run, test_world(), {1, test_world().size()}, false),
                     train(run, *self, {1, 1}, false)));
}

// One rank's latents have the longest list of codes, another's the longest of AuxK: the unit is
// that of one rank with all of them.
LatentCodes lists_of(std::vector<int64_t> lengths) {
  LatentCodes codes;
  codes.latents = static_cast<int64_t>(lengths.size());
  lengths.insert(lengths.begin(), 0);
  codes.latent_start = at::tensor(lengths, at::kLong).cumsum(0);
  return codes;
}

TEST(Deterministic, UnitsOfBDecAreThoseOfOneRank) {
  const Case c{"units", "topk", "linear", 61, 0, 1.0 / 32};
  const int size = test_world().size(), rank = test_world().rank();
  const at::Tensor g = at::ones({4, small_problem(c).x_bd.size(1)});
  const auto up = [&](Communicator& world, const LatentCodes& codes, const LatentCodes& aux) {
    Bench bench(c, small_problem(c), world, {1, world.size()});
    bench.state.dictionary.w_enc_ld.fill_(0.5);
    bench.state.dictionary.w_dec_ld.fill_(0.5);
    std::vector<BatchPart> parts(1);
    parts[0].g_bd = g;
    parts[0].codes = codes;
    parts[0].aux = AuxForward{aux, g};
    return bound_b_dec(bench.mesh, bench.state, {g}, parts, 1, {}, 61).of_latents.up;
  };
  std::unique_ptr<Communicator> self = make_self_communicator("world");
  // Over an octave: somewhere the bound crosses a power of two between `longest` and 24 more.
  for (int64_t longest = 600; longest < 1240; longest += 20) {
    const int64_t codes = rank == 0 ? longest : 10, aux = rank == size - 1 ? 24 : 1;
    std::vector<int64_t> all_codes(static_cast<size_t>(size), 10),
        all_aux(static_cast<size_t>(size), 1);
    all_codes.front() = longest;
    all_aux.back() = 24;
    EXPECT_EQ(up(test_world(), lists_of({codes}), lists_of({aux})),
              up(*self, lists_of(all_codes), lists_of(all_aux)))
        << longest;
  }
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
