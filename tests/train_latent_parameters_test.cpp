// jumprelu's thresholds by hand (B8): one token, theta = bandwidth = .001.
#include "train/latent_parameters.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

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
  double threshold, log_threshold;  // gradients
  int64_t codes;
};

Got step_at(double u, double g, double slope) {
  std::unique_ptr<Communicator> world = make_self_communicator("world");
  const Mesh mesh = make_mesh(*world, {1, 1});
  TrainState state = jumping_state(mesh, 1, "adam");
  const at::Tensor x = at::full({1, 1}, u, at::kFloat);
  const Encoded encoded =
      activation_named("jumprelu")
          .encode(mesh, state.dictionary, x, {1, 1, 0, 1}, {EncodeFor::training});
  LatentTerms terms;
  ThresholdPull pull;
  pull.l0_slope = slope;
  add_edges(state.dictionary, encoded.edges, at::full({1, 1}, g, at::kFloat), terms);
  const auto gradient = [&](Sums sums) {
    return extra_gradients(mesh, state, terms, pull, 1, sums)[0].item<double>();
  };
  const double fast = gradient(Sums::fast);
  EXPECT_NEAR(fast, gradient(Sums::exact), 1e-6);
  state.dictionary.config.jumprelu_log = true;
  return {fast, gradient(Sums::fast), encoded.codes.nnz()};
}

TEST(JumpThresholds, LearnFromWhatIsNearOnEitherSide) {
  const double g = 0.7, slope = 0.003;
  const Got above = step_at(.0012, g, slope), far = step_at(.0016, g, slope);
  const Got below = step_at(.0008, g, slope), farther = step_at(.0004, g, slope);
  EXPECT_NEAR(above.threshold, -g - 1000 * slope, 1e-5);
  EXPECT_NEAR(below.threshold, -g - 1000 * slope, 1e-5);
  EXPECT_NEAR(above.log_threshold, -.001 * g - slope, 1e-8);
  EXPECT_NEAR(below.log_threshold, -.001 * g - slope, 1e-8);
  EXPECT_EQ(far.log_threshold, 0);
  EXPECT_EQ(farther.log_threshold, 0);
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

// Under a sign's steps of .01, down, up and not finite, from .001.
at::Tensor stepped(bool log) {
  std::unique_ptr<Communicator> world = make_self_communicator("world");
  const Mesh mesh = make_mesh(*world, {1, 1});
  TrainState state = jumping_state(mesh, 3, "sign_sgd");
  state.dictionary.config.jumprelu_log = log;
  const std::vector<at::Tensor> gradients = {
      at::tensor({1.0f, -1.0f, std::numeric_limits<float>::quiet_NaN()})};
  UpdateArgs args;
  args.kind = OptimiserKind::sign_sgd;
  args.lr = 0.01;
  EXPECT_EQ(update_extra(mesh, gradients, args, state), 1);
  return state.dictionary.extra_l[0];
}

TEST(JumpThresholds, StayAtZeroOrAboveAndWhereTheirGradientIsNotFinite) {
  const at::Tensor theta = stepped(false);
  EXPECT_EQ(theta[0].item<float>(), 0);
  EXPECT_FLOAT_EQ(theta[1].item<float>(), 0.011f);
  EXPECT_EQ(theta[2].item<float>(), 0.001f);
}

TEST(JumpThresholds, LogarithmsMoveByFactors) {
  const at::Tensor theta = stepped(true);
  EXPECT_FLOAT_EQ(theta[0].item<float>(), 0.001f * std::exp(-.01f));
  EXPECT_FLOAT_EQ(theta[1].item<float>(), 0.001f * std::exp(.01f));
  EXPECT_EQ(theta[2].item<float>(), 0.001f);
}

}  // namespace
}  // namespace megadict
