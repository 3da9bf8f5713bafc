// Steps whose exchanges overlap with encoding give the bits, the sums and the counted bytes of
// those that wait for each, on every mesh.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "support/mpi_main.h"
#include "support/train_bench.h"

namespace megadict {
namespace {

constexpr int kSteps = 3;

struct Outcome {
  std::vector<at::Tensor> state;
  std::vector<double> loss;
  std::map<std::string, int64_t> bytes;
  bool operator==(const Outcome& other) const {
    bool same = loss == other.loss && bytes == other.bytes;
    for (size_t i = 0; i < state.size(); ++i) same = same && at::equal(state[i], other.state[i]);
    return same;
  }
};

Outcome train(const Case& c, const MeshConfig& shape, bool overlap, bool deterministic) {
  Bench bench(c, small_problem(c), test_world(), shape);
  bench.config.overlap = overlap;
  bench.config.deterministic = deterministic;
  bench.config.optim.lr = 0.01;
  if (std::string(c.exchange) == "gradients") bench.config.optim.clip_norm = 1;
  StepWorkspace workspace = make_workspace(bench.state, c.encode);
  Outcome out;
  for (int step = 0; step < kSteps; ++step) out.loss.push_back(step_of(bench, c, workspace).loss);
  const Dictionary& d = bench.state.dictionary;
  out.state = {
      d.w_enc_ld,         d.w_dec_ld, d.b_enc_l, d.b_dec_d, bench.state.tokens_since_fired_l,
      bench.state.w_enc.v};
  for (const Communicator* axis : {bench.mesh.feature.get(), bench.mesh.data.get()})
    for (const auto& [name, count] : axis->counts())
      out.bytes[axis->axis() + " " + name] = count.bytes;
  return out;
}

class Overlap : public testing::TestWithParam<Case> {};

TEST_P(Overlap, ChangesNoBit) {
  const Case c = GetParam();
  const bool tokens = std::string(c.exchange) == "tokens";
  const bool exact = tokens && std::string(c.encode) == "fp32";
  for (const MeshConfig& shape : meshes_of_ranks(test_world().size()))
    for (const bool deterministic : {false, true}) {
      if (deterministic && !exact) continue;
      EXPECT_TRUE(train(c, shape, true, deterministic) == train(c, shape, false, deterministic))
          << c.name << " on " << shape.data << "x" << shape.feature
          << (deterministic ? ", deterministic" : "");
    }
}

// Micro-batches: two, three, many and as many as stages.
INSTANTIATE_TEST_SUITE_P(
    Cases, Overlap,
    testing::Values(Case{"topk_two", "topk", "linear", 61, 31, 0},
                    Case{"topk_auxk_many", "topk", "linear", 61, 7, 1.0 / 32},
                    Case{"topk_one", "topk", "linear", 61, 0, 1.0 / 32},
                    Case{"topk_lazy", "topk", "linear", 61, 13, 1.0 / 32, "fp32", "tokens",
                         "adam_b1_0"},
                    Case{"topk_tied", "topk", "tied", 61, 25, 1.0 / 32},
                    Case{"relu", "relu", "linear", 37, 10, 0},
                    Case{"clipped", "topk", "linear", 61, 13, 1.0 / 32, "fp32", "gradients"},
                    Case{"screened", "topk", "linear", 61, 16, 1.0 / 32, "screen_int8"},
                    Case{"batchtopk", "batchtopk", "linear", 61, 0, 0}),
    [](const auto& row) { return row.param.name; });

// A bad row ends the step everywhere, whatever is under way then.
TEST(Overlap, ValuesThatAreNotFiniteEndTheStepOnEveryRank) {
  const Case c{"bad", "topk", "linear", 61, 7, 1.0 / 32};
  for (const MeshConfig& shape : meshes_of_ranks(test_world().size())) {
    Bench bench(c, small_problem(c), test_world(), shape);
    bench.config.overlap = true;
    bench.problem.x_bd[17][3] = std::numeric_limits<float>::quiet_NaN();
    StepWorkspace workspace = make_workspace(bench.state, c.encode);
    EXPECT_FALSE(step_of(bench, c, workspace).finite) << bench.mesh.name();
  }
}

}  // namespace
}  // namespace megadict
