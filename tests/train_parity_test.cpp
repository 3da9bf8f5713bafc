// One step of the hand-written path on every mesh against the autograd oracle on the same mesh and
// on one rank: loss, every gradient, the updated weights; with AuxK, L1, tied decoders, sizes that
// do not divide, ragged and padded batches, several micro-batches. Once on small Gaussian rows,
// once on 4099 latents and rows of a language model (tinylm-activations of the shared data).
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "comm/backends.h"
#include "io/file.h"
#include "kernels/tensor_kernels.h"
#include "support/mpi_main.h"
#include "support/shared_data.h"
#include "support/train_bench.h"

namespace megadict {
namespace {

double relative(const at::Tensor& got, const at::Tensor& want) {
  const at::Tensor g = got.to(at::kDouble), w = want.to(at::kDouble);
  return (g - w).norm().item<double>() / std::max(w.norm().item<double>(), 1e-30);
}

// Rows whose k-th and next of some pre-activations nearly tie could select differently by rounding.
at::Tensor smallest_gap(const at::Tensor& v_bn, int64_t k) {
  const at::Tensor top = std::get<0>(v_bn.topk(k + 1, 1));
  const at::Tensor last = top.select(1, k - 1);
  return (last - top.select(1, k)).abs() / last.abs();
}

at::Tensor pre_activations(const Case& c, const Problem& p) {
  std::unique_ptr<Communicator> self = make_self_communicator("world");
  const Dictionary whole = Bench(c, p, *self, {1, 1}).state.dictionary;
  return at::addmm(p.b_enc_n, seen_by_encoder(whole, p.x_bd), whole.w_enc_ld.t());
}

at::Tensor without_near_ties(const Case& c, const Problem& p) {
  const at::Tensor v = pre_activations(c, p);
  at::Tensor clear = at::ones({v.size(0)}, at::kBool);
  if (c.jumps()) {
    // Neither at a threshold nor at an end of its rectangle.
    const at::Tensor from = v - p.threshold_n();
    for (const double edge : {-p.bandwidth / 2, 0.0, p.bandwidth / 2})
      clear.logical_and_((from - edge).abs().gt(1e-5).all(1));
  } else if (c.gated()) {
    // Neither at a gate nor at a magnitude's ReLU.
    const at::Tensor m = (v - p.b_enc_n) * p.r_mag_n().exp() + p.b_mag_n();
    clear = v.abs().gt(1e-5).all(1).logical_and_(m.abs().gt(1e-5).all(1));
  } else if (!c.whole_batch()) {
    clear = smallest_gap(v, p.k).gt(1e-5);
  }
  if (c.auxk_alpha > 0) {
    const at::Tensor dead = v.index_select(1, p.dead_n().nonzero().squeeze(1));
    clear = clear.logical_and(smallest_gap(dead, p.k_aux).gt(1e-5));
  }
  return clear;
}

// Of a selection over the batch: its smallest and the next one.
bool batch_is_clear(const Case& c, const Problem& p) {
  const at::Tensor all = pre_activations(c, p).flatten().unsqueeze(0);
  return smallest_gap(all, p.x_bd.size(0) * p.k).gt(5e-6).item<bool>();
}

// The gradient of unit rows as the optimiser takes it.
at::Tensor without_parallel(const at::Tensor& g, const at::Tensor& rows) {
  return g - (g * rows).sum(1, true) * rows;
}

// Gradients of the hidden layers, which every rank applied whole; `before`: their values then.
void check_hidden(const Bench& bench, const std::vector<at::Tensor>& before,
                  const GenericLoss& oracle, const GenericLoss& one, const std::string& where) {
  const Dictionary& dictionary = bench.state.dictionary;
  const auto parameters = hidden_parameters(dictionary.config, dictionary.d);
  const double scale =
      (1 - bench.config.optim.beta1) * static_cast<double>(bench.problem.x_bd.size(0));
  for (size_t i = 0; i < parameters.size(); ++i) {
    const auto taken = [&](const at::Tensor& g) {
      return parameters[i].unit_rows ? without_parallel(g, before[i]) : g;
    };
    const at::Tensor got = bench.state.hidden[i].m / scale;
    EXPECT_LT(relative(got, taken(oracle.hidden[i])), 2e-5) << parameters[i].name << " " << where;
    EXPECT_LT(relative(got, taken(one.hidden[i])), 2e-5) << parameters[i].name << " 1x1 " << where;
    EXPECT_FALSE(at::equal(before[i], dictionary.hidden[i])) << parameters[i].name << where;
  }
}

// Loss and gradients of a step equal the oracle's on this mesh and on one rank.
void expect_parity(const Case& c, const Problem& p) {
  if (!c.relu()) {
    EXPECT_TRUE(without_near_ties(c, p).all().item<bool>());
  }
  if (c.whole_batch()) {
    EXPECT_TRUE(batch_is_clear(c, p));
  }
  std::unique_ptr<Communicator> self = make_self_communicator("world");
  const GenericLoss one = Bench(c, p, *self, {1, 1}).oracle(c);
  const auto batch = static_cast<double>(c.batch);
  for (const MeshConfig& shape : meshes_of_ranks(test_world().size())) {
    Bench bench(c, p, test_world(), shape);
    const std::string where = fmt::format("{} on {}", c.name, bench.mesh.name());
    const GenericLoss oracle = bench.oracle(c);
    EXPECT_NEAR(oracle.loss, one.loss, 1e-6 * std::fabs(one.loss)) << where;

    std::vector<at::Tensor> before;
    for (const at::Tensor& hidden : bench.state.dictionary.hidden) before.push_back(hidden.clone());
    StepWorkspace workspace = make_workspace(bench.state, c.encode);
    int64_t index = 0;
    const StepResult result = train_step(
        bench.mesh, bench.config, [&] { return bench.micro(c, index++); }, true, bench.state,
        workspace);
    EXPECT_NEAR(result.loss, one.loss, 1e-6 * std::fabs(one.loss)) << where;
    EXPECT_NEAR(result.fvu, one.fvu, 1e-6 * one.fvu) << where;

    const Range own = bench.state.own;
    const auto mine = [&](const at::Tensor& t) { return t.narrow(0, own.begin, own.size()); };
    const auto check = [&](const char* what, const at::Tensor& got, const at::Tensor& on_mesh,
                           const at::Tensor& alone) {
      if (got.numel() == 0) return;
      EXPECT_LT(relative(got, on_mesh), 1e-5) << what << " " << where;
      EXPECT_LT(relative(got, alone), 1e-5) << what << " against 1x1, " << where;
    };
    const int64_t first = bench.state.dictionary.latents.begin + own.begin;
    const auto alone = [&](const at::Tensor& t) { return t.narrow(0, first, own.size()); };
    // After one step from zero moments m is the gradient that was applied, whatever the path.
    const auto applied = [&](const Moments& moments) {
      return moments.m / ((1 - bench.config.optim.beta1) * batch);
    };
    check("W_enc", applied(bench.state.w_enc), mine(oracle.w_enc_ld), alone(one.w_enc_ld));
    const Dictionary& dictionary = bench.state.dictionary;
    if (!dictionary.tied()) {
      const at::Tensor rows = alone(p.w_dec_nd);
      const auto taken = [&](const at::Tensor& g) {
        return dictionary.unit_rows() ? without_parallel(g, rows) : g;
      };
      check("W_dec", applied(bench.state.w_dec), taken(mine(oracle.w_dec_ld)),
            taken(alone(one.w_dec_ld)));
    }
    check_hidden(bench, before, oracle, one, where);
    check("b_enc", applied(bench.state.b_enc), mine(oracle.b_enc_l), alone(one.b_enc_l));
    for (size_t i = 0; i < oracle.extra_l.size(); ++i)
      check("latent parameter", applied(bench.state.extra[i]), mine(oracle.extra_l[i]),
            alone(one.extra_l[i]));
    check("b_dec", workspace.b_dec_d / batch, oracle.b_dec_d, one.b_dec_d);
    const at::Tensor rows = bench.state.dictionary.w_dec_ld;
    if (dictionary.unit_rows()) {
      EXPECT_LT((rows.norm(2, 1) - 1).abs().max().item<double>(), 1e-6) << where;
    }
    EXPECT_EQ(bench.state.tokens, Bench::kWindow + c.batch);
  }
}

// The tensor operations in chunks of five rows.
const KernelSet kSmallChunks = tensor_kernel_set<8192>("tensor_small_chunks");

// Prefixes that end inside shards, of one latent and of nearly all.
Case matryoshka(const char* name, const char* activation, const char* decoder, int64_t batch,
                int64_t micro, double auxk_alpha, const char* exchange = "tokens",
                const KernelSet* kernels = nullptr) {
  return {name,   activation, decoder, batch,   micro,          auxk_alpha,
          "fp32", exchange,   "adam",  kernels, "1,0.25,70,129"};
}

Case jumping(const char* name, const char* decoder, int64_t batch, int64_t micro, double auxk_alpha,
             double l0_target, const char* exchange = "tokens", const KernelSet* kernels = nullptr,
             const char* prefixes = "", double preact = 0, bool log = false) {
  return {name,     "jumprelu", decoder, batch,    micro,     auxk_alpha, "fp32",
          exchange, "adam",     kernels, prefixes, l0_target, preact,     log};
}

Case gated(const char* name, const char* decoder, int64_t batch, int64_t micro, double auxk_alpha,
           const char* exchange = "tokens", const KernelSet* kernels = nullptr,
           const char* prefixes = "") {
  return {name,   "gated",  decoder, batch,   micro,   auxk_alpha,
          "fp32", exchange, "adam",  kernels, prefixes};
}

// Hidden layers before the latents, behind them, or both.
Case hidden(const char* name, const char* encoder, const char* widths, const char* activation,
            const char* decoder, int64_t micro = 0, bool norm = false,
            const KernelSet* kernels = nullptr, double auxk_alpha = 0) {
  Case c{name, activation, decoder, 61, micro, auxk_alpha, "fp32", "gradients", "adam", kernels};
  if (c.jumps()) c.l0_target = 9;
  c.encoder = encoder;
  c.hidden = widths;
  c.decoder_norm = norm;
  return c;
}

class Parity : public testing::TestWithParam<Case> {
 protected:
  KernelsOf kernels_{GetParam()};
};

TEST_P(Parity, LossAndGradientsEqualTheOraclesOnEveryMesh) {
  expect_parity(GetParam(), small_problem(GetParam()));
}

// Replicas of a data axis hold the same bits after a step.
TEST_P(Parity, ReplicasAgree) {
  const Case c = GetParam();
  for (const MeshConfig& shape : meshes_of_ranks(test_world().size())) {
    Bench bench(c, small_problem(c), test_world(), shape);
    StepWorkspace workspace = make_workspace(bench.state, c.encode);
    step_of(bench, c, workspace);
    at::Tensor low = bench.state.dictionary.w_enc_ld.clone(), high = low.clone();
    bench.mesh.data->all_reduce({low.mutable_data_ptr(), low.numel()}, ReduceOp::min, "test low");
    bench.mesh.data->all_reduce({high.mutable_data_ptr(), high.numel()}, ReduceOp::max,
                                "test high");
    EXPECT_TRUE(at::equal(low, high)) << bench.mesh.name();
  }
}

// The screen's copy of the encoder rows follows every update, in one pass and by tensors.
TEST_P(Parity, AScreenFollowsTheUpdates) {
  const Case c = GetParam();
  if (std::string(c.encode) == "fp32") return;
  const auto losses = [&](const MeshConfig& shape, const char* encode) {
    Bench bench(c, small_problem(c), test_world(), shape);
    bench.config.optim.lr = 0.05;  // rows move by several steps of int8
    StepWorkspace workspace = make_workspace(bench.state, encode);
    std::vector<double> out;
    for (int step = 0; step < 4; ++step) out.push_back(step_of(bench, c, workspace).fvu);
    return out;
  };
  for (const MeshConfig& shape : meshes_of_ranks(test_world().size())) {
    const std::vector<double> exact = losses(shape, "fp32"), screened = losses(shape, c.encode);
    for (size_t i = 0; i < exact.size(); ++i)
      EXPECT_NEAR(screened[i], exact[i], 1e-3 * exact[i]) << i << " " << shape.data;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, Parity,
    testing::Values(
        Case{"topk", "topk", "linear", 64, 0, 0},
        Case{"topk_auxk", "topk", "linear", 61, 0, 1.0 / 32},
        Case{"topk_micro", "topk", "linear", 61, 16, 1.0 / 32},
        Case{"topk_tied", "topk", "tied", 61, 0, 1.0 / 32},
        Case{"topk_screened", "topk", "linear", 61, 0, 1.0 / 32, "screen_int8"},
        Case{"topk_screened_micro", "topk", "linear", 61, 16, 1.0 / 32, "screen_int8"},
        Case{"topk_screened_tied", "topk", "tied", 61, 0, 0, "screen_int8"},
        Case{"topk_screened_bf16", "topk", "linear", 61, 16, 1.0 / 32, "screen_bf16"},
        Case{"batchtopk", "batchtopk", "linear", 64, 0, 0},
        Case{"batchtopk_auxk", "batchtopk", "linear", 61, 0, 1.0 / 32},
        Case{"batchtopk_tied", "batchtopk", "tied", 61, 0, 1.0 / 32},
        Case{"batchtopk_screened", "batchtopk", "linear", 61, 0, 1.0 / 32, "screen_int8"},
        Case{"batchtopk_screened_bf16", "batchtopk", "tied", 61, 0, 1.0 / 32, "screen_bf16"},
        Case{"batchtopk_one_row", "batchtopk", "linear", 1, 0, 1.0 / 32},
        Case{"batchtopk_screened_one_row", "batchtopk", "tied", 1, 0, 0, "screen_int8"},
        hidden("mlp_relu", "mlp", "40", "relu", "linear"),
        hidden("mlp_topk", "mlp", "40,17", "topk", "linear", 16, false, nullptr, 1.0 / 32),
        hidden("mlp_batchtopk_tensors", "mlp", "33", "batchtopk", "linear", 0, false,
               &kSmallChunks),
        hidden("deep_relu", "deep", "", "relu", "linear", 10),
        hidden("deep_topk_tied", "deep", "24,24", "topk", "tied"),
        hidden("deep_jumprelu", "deep", "", "jumprelu", "linear"),
        hidden("deep_gated", "deep", "", "gated", "linear", 16),
        hidden("linear_deep", "linear", "", "relu", "deep", 16),
        hidden("deep_deep", "deep", "", "relu", "deep"),
        hidden("deep_deep_norm_topk", "deep", "24,24", "topk", "deep", 10, true),
        hidden("mlp_deep_tensors", "mlp", "19", "jumprelu", "deep", 0, true, &kSmallChunks),
        matryoshka("matryoshka", "batchtopk", "linear", 61, 0, 1.0 / 32),
        matryoshka("matryoshka_topk_micro", "topk", "linear", 61, 16, 1.0 / 32),
        matryoshka("matryoshka_topk_gradients", "topk", "linear", 61, 16, 1.0 / 32, "gradients"),
        matryoshka("matryoshka_tied", "batchtopk", "tied", 61, 0, 0),
        matryoshka("matryoshka_relu", "relu", "linear", 37, 10, 1.0 / 32),
        matryoshka("matryoshka_one_row", "batchtopk", "linear", 1, 0, 0),
        matryoshka("matryoshka_tensors", "batchtopk", "linear", 61, 0, 1.0 / 32, "tokens",
                   &kSmallChunks),
        jumping("jumprelu", "linear", 61, 0, 0, 0),
        jumping("jumprelu_micro_target", "linear", 61, 16, 0, 20),
        jumping("jumprelu_gradients", "linear", 61, 16, 0, 20, "gradients"),
        jumping("jumprelu_tied", "tied", 61, 0, 0, 20),
        jumping("jumprelu_auxk", "linear", 61, 0, 1.0 / 32, 0),
        jumping("jumprelu_matryoshka", "linear", 61, 16, 0, 20, "tokens", nullptr, "0.25,70"),
        jumping("jumprelu_tensors", "linear", 61, 0, 0, 20, "tokens", &kSmallChunks),
        jumping("jumprelu_one_row", "linear", 1, 0, 0, 20),
        jumping("jumprelu_log", "linear", 61, 16, 0, 20, "tokens", nullptr, "", 0.3, true),
        jumping("preact", "linear", 61, 0, 0, 20, "tokens", nullptr, "", 0.3),
        jumping("preact_micro_auxk", "linear", 61, 16, 1.0 / 32, 20, "tokens", nullptr, "", 0.3),
        jumping("preact_gradients", "tied", 61, 16, 0, 20, "gradients", nullptr, "", 0.3),
        jumping("preact_matryoshka_tensors", "linear", 61, 16, 0, 20, "tokens", &kSmallChunks,
                "0.25,70", 0.3),
        gated("gated", "linear", 61, 0, 0), gated("gated_micro_auxk", "linear", 61, 16, 1.0 / 32),
        gated("gated_gradients", "linear", 61, 16, 0, "gradients"),
        gated("gated_tied", "tied", 61, 0, 0), gated("gated_one_row", "linear", 1, 0, 0),
        gated("gated_matryoshka", "linear", 61, 16, 0, "tokens", nullptr, "0.25,70"),
        gated("gated_tensors", "linear", 61, 16, 1.0 / 32, "tokens", &kSmallChunks),
        Case{"relu", "relu", "linear", 61, 0, 0},
        Case{"relu_micro_auxk", "relu", "linear", 37, 10, 1.0 / 32},
        Case{"relu_tied", "relu", "tied", 5, 0, 0},
        Case{"one_row", "topk", "linear", 1, 0, 1.0 / 32},
        Case{"tensors", "topk", "linear", 61, 0, 1.0 / 32, "fp32", "tokens", "adam", &kSmallChunks},
        Case{"tensors_micro", "topk", "linear", 61, 16, 1.0 / 32, "fp32", "tokens", "adam",
             &kSmallChunks},
        Case{"tensors_tied", "topk", "tied", 61, 0, 1.0 / 32, "fp32", "tokens", "adam",
             &kSmallChunks},
        Case{"tensors_relu", "relu", "linear", 37, 0, 1.0 / 32, "fp32", "tokens", "adam",
             &kSmallChunks},
        Case{"tensors_one_row", "topk", "linear", 1, 0, 1.0 / 32, "fp32", "tokens", "adam",
             &kSmallChunks}),
    [](const auto& row) { return row.param.name; });

// ---- rows of a language model ------------------------------------------------------------------

constexpr int64_t kTinylmWidth = 128, kTinylmRows = 2041;

std::string tinylm_file() {
  return shared_data("tinylm-activations/resid_post_layer2_65536x128_f32.bin");
}

// 4099 latents (a prime) started as training starts, and a batch, odd in size, of the first rows
// that hold no near tie.
Problem tinylm_problem(const Case& c) {
  constexpr int64_t n = 4099, pool = 2600;
  at::Tensor x = at::empty({pool, kTinylmWidth}, at::kFloat);
  RandomAccessFile(tinylm_file())
      .read(0, x.mutable_data_ptr(), static_cast<size_t>(x.numel()) * sizeof(float));
  const at::Tensor w_dec = unit_rows(random({n, kTinylmWidth}, 1)), centre = x.mean(0);
  const double var_total = (x - centre).square().sum().item<double>() / pool;
  Problem p{32, 64, 0.05, var_total, w_dec * 0.3, w_dec, random({n}, 3) * 0.01, centre, x};
  if (c.tied()) p.w_dec_nd = w_dec * std::sqrt(0.3);
  const at::Tensor clear = x.index_select(0, without_near_ties(c, p).nonzero().squeeze(1));
  for (int64_t first = 0; first + c.batch <= clear.size(0); ++first) {
    p.x_bd = clear.narrow(0, first, c.batch).contiguous();
    if (!c.whole_batch() || batch_is_clear(c, p)) break;
  }
  return p;
}

class ParityOnActivations : public testing::TestWithParam<Case> {
 protected:
  KernelsOf kernels_{GetParam()};
};

TEST_P(ParityOnActivations, LossAndGradientsEqualTheOraclesOnEveryMesh) {
  if (!file_exists(tinylm_file())) GTEST_SKIP() << "shared data absent: " << tinylm_file();
  expect_parity(GetParam(), tinylm_problem(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(
    Cases, ParityOnActivations,
    testing::Values(Case{"topk_auxk", "topk", "linear", kTinylmRows, 0, 1.0 / 32},
                    Case{"topk_screened", "topk", "linear", kTinylmRows, 0, 1.0 / 32,
                         "screen_int8"},
                    Case{"topk_tied_micro", "topk", "tied", kTinylmRows, 700, 1.0 / 32},
                    Case{"batchtopk", "batchtopk", "linear", 509, 0, 1.0 / 32},
                    Case{"batchtopk_screened", "batchtopk", "tied", 509, 0, 0, "screen_int8"},
                    Case{"relu", "relu", "linear", kTinylmRows, 0, 0},
                    Case{"relu_tied", "relu", "tied", kTinylmRows, 0, 0},
                    Case{"tensors", "topk", "linear", kTinylmRows, 0, 1.0 / 32, "fp32", "tokens",
                         "adam", &kTensorKernels}),
    [](const auto& row) { return row.param.name; });

// ---- all rows in one shard ---------------------------------------------------------------------

// The best latents of every row are among the first or the last 100 of 403, with k wide enough that
// the shard which holds them cannot send them all at first.
class OneShard : public testing::TestWithParam<Case> {
 protected:
  KernelsOf kernels_{GetParam()};

  static Problem planted(const Case& c, bool last) {
    constexpr int64_t n = 403, used = 100, pool = 600;
    Problem p = gaussian_problem(96, n, 24, pool);
    p.b_enc_n.narrow(0, last ? n - used : 0, used).add_(60);
    p.x_bd = p.x_bd.index_select(0, without_near_ties(c, p).nonzero().squeeze(1))
                 .narrow(0, 0, c.batch)
                 .contiguous();
    return p;
  }
};

TEST_P(OneShard, AStepOnEveryMeshEqualsOneRanks) {
  const Case c = GetParam();
  for (const bool last : {false, true}) {
    const Problem p = planted(c, last);
    expect_parity(c, p);
    std::unique_ptr<Communicator> self = make_self_communicator("world");
    const auto step = [&](Bench& bench) {
      StepWorkspace workspace = make_workspace(bench.state, c.encode);
      return train_step(
          bench.mesh, bench.config, [&] { return bench.micro(c, 0); }, false, bench.state,
          workspace);
    };
    Bench alone(c, p, *self, {1, 1});
    const StepResult want = step(alone);
    for (const MeshConfig& shape : meshes_of_ranks(test_world().size())) {
      Bench bench(c, p, test_world(), shape);
      bench.mesh.feature->reset_counts();
      const StepResult got = step(bench);
      const std::string where = fmt::format("{} last {}", bench.mesh.name(), last);
      EXPECT_EQ(got.l0, want.l0) << where;
      EXPECT_EQ(bench.mesh.feature->counts().contains("topk repair"), shape.feature > 1) << where;
      const Range mine = bench.state.dictionary.latents;
      const auto expect_rows = [&](const at::Tensor& rows, const at::Tensor& all) {
        EXPECT_LT(relative(rows, all.narrow(0, mine.begin, mine.size())), 1e-5) << where;
      };
      expect_rows(bench.state.dictionary.w_enc_ld, alone.state.dictionary.w_enc_ld);
      expect_rows(bench.state.dictionary.w_dec_ld, alone.state.dictionary.w_dec_ld);
      expect_rows(bench.state.dictionary.b_enc_l, alone.state.dictionary.b_enc_l);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, OneShard,
                         testing::Values(Case{"cpu", "topk", "linear", 61, 0, 0},
                                         Case{"screened", "topk", "linear", 61, 0, 0,
                                              "screen_int8"},
                                         Case{"tensors", "topk", "linear", 61, 0, 0, "fp32",
                                              "tokens", "adam", &kTensorKernels}),
                         [](const auto& row) { return row.param.name; });

// A prefix of all latents is no prefix at all, bit for bit.
TEST(Matryoshka, OnePrefixIsThePlainStep) {
  const Case plain{"plain", "batchtopk", "linear", 61, 0, 1.0 / 32};
  Case one = plain;
  one.matryoshka = "131";
  for (const MeshConfig& shape : meshes_of_ranks(test_world().size())) {
    Bench a(plain, small_problem(plain), test_world(), shape);
    Bench b(one, small_problem(one), test_world(), shape);
    StepWorkspace work_a = make_workspace(a.state, "fp32"),
                  work_b = make_workspace(b.state, "fp32");
    for (int step = 0; step < 2; ++step)
      EXPECT_EQ(step_of(a, plain, work_a).loss, step_of(b, one, work_b).loss) << a.mesh.name();
    EXPECT_TRUE(at::equal(a.state.dictionary.w_dec_ld, b.state.dictionary.w_dec_ld));
    EXPECT_TRUE(at::equal(a.state.dictionary.w_enc_ld, b.state.dictionary.w_enc_ld));
  }
}

// Every prefix's reconstruction is that of a dictionary which holds no more latents.
TEST(Matryoshka, APrefixIsWorthWhatItsLatentsAreAlone) {
  Case c{"prefixes", "relu", "linear", 61, 0, 0};
  const Problem p = small_problem(c);
  std::vector<double> alone;
  for (const int64_t n : {40, 97, 131}) {
    Problem some = p;
    for (at::Tensor* t : {&some.w_enc_nd, &some.w_dec_nd, &some.b_enc_n}) *t = t->narrow(0, 0, n);
    std::unique_ptr<Communicator> self = make_self_communicator("world");
    Bench bench(c, some, *self, {1, 1});
    StepWorkspace workspace = make_workspace(bench.state, "fp32");
    alone.push_back(step_of(bench, c, workspace).fvu);
  }
  c.matryoshka = "40,97";
  for (const MeshConfig& shape : meshes_of_ranks(test_world().size())) {
    Bench bench(c, p, test_world(), shape);
    StepWorkspace workspace = make_workspace(bench.state, "fp32");
    const std::vector<double> got = step_of(bench, c, workspace).prefix_fvu;
    ASSERT_EQ(got.size(), alone.size());
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_NEAR(got[i], alone[i], 1e-6 * alone[i]) << i << " " << bench.mesh.name();
  }
}

TEST(AuxkEvery, ActsInEveryMthStepAlone) {
  const Case c{"auxk_every", "topk", "linear", 61, 0, 1.0 / 32};
  for (const MeshConfig& shape : meshes_of_ranks(test_world().size())) {
    Bench bench(c, small_problem(c), test_world(), shape);
    bench.config.dead.auxk_every = 3;
    bench.config.dead.window_tokens = 1;  // what did not fire in the last step is dead
    StepWorkspace workspace = make_workspace(bench.state, c.encode);
    for (int step = 0; step < 7; ++step) {
      const double aux_loss = train_step(
                                  bench.mesh, bench.config, [&] { return bench.micro(c, 0); },
                                  false, bench.state, workspace)
                                  .aux_loss;
      EXPECT_EQ(aux_loss > 0, step % 3 == 0) << step << " " << bench.mesh.name();
    }
  }
}

// A batch with a row that is not finite: nobody writes it, everybody learns of it in that step.
TEST(NotFinite, NoRowIsWrittenAndAllRanksAgree) {
  const Case c{"bad", "topk", "linear", 61, 0, 0};
  for (const MeshConfig& shape : meshes_of_ranks(test_world().size())) {
    Bench bench(c, small_problem(c), test_world(), shape);
    bench.problem.x_bd[17][3] = std::numeric_limits<float>::infinity();
    StepWorkspace workspace = make_workspace(bench.state, c.encode);
    const StepResult result = train_step(
        bench.mesh, bench.config, [&] { return bench.micro(c, 0); }, false, bench.state, workspace);
    EXPECT_FALSE(result.finite) << bench.mesh.name();
    const Dictionary& d = bench.state.dictionary;
    for (const at::Tensor& t : {d.w_enc_ld, d.w_dec_ld, d.b_enc_l, d.b_dec_d})
      EXPECT_TRUE(t.isfinite().all().item<bool>()) << bench.mesh.name();
  }
}

}  // namespace
}  // namespace megadict
