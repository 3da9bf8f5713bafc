// jumprelu's thresholds by hand (B8): one token, theta = bandwidth = .001.
#include "train/latent_parameters.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "comm/backends.h"
#include "model/initialise.h"
#include "model/tensor_views.h"

namespace megadict {
namespace {

TrainState jumping_state(const Mesh& mesh, int64_t latents, const char* optimiser) {
  ModelConfig config;
  config.activation = "jumprelu";
  TrainState state;
  state.dictionary = empty_dictionary(config, latents, 1, {0, latents}, latents, at::kCPU);
  state.dictionary.w_enc_ld.fill_(1);
  state.dictionary.w_dec_ld.fill_(1);
  reset_optimiser(mesh, optimiser_named(optimiser), false, state);
  return state;
}

struct Got {
  double threshold;  // its gradient
  int64_t codes;
};

Got step_at(double u, double g, double slope) {
  std::unique_ptr<Communicator> world = make_self_communicator("world");
  const Mesh mesh = make_mesh(*world, {1, 1});
  const TrainState state = jumping_state(mesh, 1, "adam");
  const at::Tensor x = at::full({1, 1}, u, at::kFloat);
  const Encoded encoded =
      activation_named("jumprelu")
          .encode(mesh, state.dictionary, x, {1, 1, 0, 1}, {EncodeFor::training});
  LatentTerms terms;
  ThresholdPull pull;
  pull.l0_slope = slope;
  add_edges(state.dictionary, encoded.edges, at::full({1, 1}, g, at::kFloat), terms);
  const double fast = extra_gradients(mesh, state, terms, pull, 1, Sums::fast)[0].item<double>();
  EXPECT_NEAR(fast, extra_gradients(mesh, state, terms, pull, 1, Sums::exact)[0].item<double>(),
              1e-6);
  return {fast, encoded.codes.nnz()};
}

TEST(JumpThresholds, LearnFromWhatIsNearOnEitherSide) {
  const double g = 0.7, slope = 0.003;
  const Got above = step_at(.0012, g, slope), far = step_at(.0016, g, slope);
  const Got below = step_at(.0008, g, slope), farther = step_at(.0004, g, slope);
  EXPECT_NEAR(above.threshold, -g - 1000 * slope, 1e-5);
  EXPECT_NEAR(below.threshold, -g - 1000 * slope, 1e-5);
  EXPECT_EQ(far.threshold, 0);
  EXPECT_EQ(farther.threshold, 0);
  EXPECT_EQ(above.codes, 1);
  EXPECT_EQ(far.codes, 1);
  EXPECT_EQ(below.codes, 0);
}

TEST(JumpThresholds, TheTargetPullsFromBothSides) {
  ModelConfig config;
  config.l0_target = 20;
  EXPECT_EQ(l0_penalty(config, 2, 20).slope, 0);
  EXPECT_EQ(l0_penalty(config, 2, 40).loss, 2);
  EXPECT_DOUBLE_EQ(l0_penalty(config, 2, 40).slope, 0.2);
  EXPECT_DOUBLE_EQ(l0_penalty(config, 2, 10).slope, -0.1);
  config.l0_target = 0;
  EXPECT_EQ(l0_penalty(config, 2, 40).slope, 2);
}

TEST(JumpThresholds, StayAtZeroOrAboveAndWhereTheirGradientIsNotFinite) {
  std::unique_ptr<Communicator> world = make_self_communicator("world");
  const Mesh mesh = make_mesh(*world, {1, 1});
  TrainState state = jumping_state(mesh, 3, "sign_sgd");
  const std::vector<at::Tensor> gradients = {
      at::tensor({1.0f, -1.0f, std::numeric_limits<float>::quiet_NaN()})};
  UpdateArgs args;
  args.kind = OptimiserKind::sign_sgd;
  args.lr = 0.01;
  EXPECT_EQ(update_extra(mesh, gradients, args, state), 1);
  const at::Tensor theta = state.dictionary.extra_l[0];
  EXPECT_EQ(theta[0].item<float>(), 0);
  EXPECT_FLOAT_EQ(theta[1].item<float>(), 0.011f);
  EXPECT_FLOAT_EQ(theta[2].item<float>(), 0.001f);
}

}  // namespace
}  // namespace megadict
