// Hidden layers: which weights decay, what residual and LayerNorm compute, gradients in fp64 steps.
#include "model/hidden.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include "base/error.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::error_of;

constexpr int64_t kWidth = 6;

ModelConfig config_of(const char* encoder, const char* hidden, const char* decoder = "linear") {
  ModelConfig config;
  config.encoder = encoder;
  config.hidden = hidden;
  config.decoder = decoder;
  config.decoder_norm = config.decoder == "deep";
  return config;
}

std::vector<at::Tensor> drawn(const ModelConfig& config) {
  std::vector<at::Tensor> hidden = empty_hidden(config, kWidth, at::kCPU);
  draw_hidden(config, 3, hidden);
  return hidden;
}

at::Tensor rows_of(int64_t rows) {
  at::Generator generator = at::detail::createCPUGenerator(5);
  return at::randn({rows, kWidth}, generator);
}

TEST(Hidden, DecayIsForHiddenWeightsAlone) {
  std::vector<std::string> decaying, all;
  for (const HiddenParameter& parameter :
       hidden_parameters(config_of("deep", "6,6", "deep"), kWidth)) {
    all.push_back(parameter.name);
    if (parameter.decays) decaying.push_back(parameter.name);
  }
  EXPECT_THAT(decaying, testing::ElementsAre("front.0.weight", "front.1.weight"));
  EXPECT_THAT(all, testing::ElementsAre("front.0.weight", "front.0.bias", "front.0.norm.gain",
                                        "front.0.norm.shift", "front.1.weight", "front.1.bias",
                                        "front.1.norm.gain", "front.1.norm.shift", "back.bias",
                                        "back.norm.gain", "back.norm.shift", "back.weight"));
}

// B4: with weight and bias 0 and no shift, what is added to x is 0.
TEST(Hidden, TheResidualAloneIsTheInput) {
  const ModelConfig config = config_of("deep", "");
  std::vector<at::Tensor> hidden = drawn(config);
  hidden[0].zero_();
  const at::Tensor x = rows_of(9);
  EXPECT_TRUE(at::equal(in_front(config, hidden, x), x));
  hidden[3].fill_(0.5);
  EXPECT_TRUE(at::allclose(in_front(config, hidden, x), x + 0.5));
}

TEST(Hidden, TheStartFollowsTheItems) {
  const std::vector<at::Tensor> mlp = drawn(config_of("mlp", "4000"));
  const double bound = 1 / std::sqrt(static_cast<double>(kWidth));
  EXPECT_LE(mlp[0].abs().max().item<double>(), bound);
  EXPECT_NEAR(mlp[0].to(at::kDouble).square().mean().item<double>(), bound * bound / 3, 2e-3);
  const std::vector<at::Tensor> deep = drawn(config_of("deep", "", "deep"));
  EXPECT_EQ(deep[1].abs().max().item<float>(), 0);
  EXPECT_EQ(deep[2].min().item<float>(), 1);
  EXPECT_LT((deep.back().norm(2, 1) - 1).abs().max().item<double>(), 1e-6);
}

// Central differences of sum(weights * result), the layers in fp64.
void expect_gradients(const ModelConfig& config, bool back) {
  std::vector<at::Tensor> hidden;
  for (const at::Tensor& tensor : drawn(config)) hidden.push_back(tensor.to(at::kDouble));
  const at::Tensor x = rows_of(7).to(at::kDouble);
  const auto result = [&](const at::Tensor& at) {
    return back ? behind(config, hidden, at) : in_front(config, hidden, at);
  };
  const at::Tensor above = result(x).detach().sin() + 0.3;
  std::vector<at::Tensor> gradients;
  for (const at::Tensor& tensor : hidden) gradients.push_back(at::zeros_like(tensor));
  at::Tensor of_x;
  if (back)
    of_x = behind_backward(config, hidden, x, above, gradients);
  else
    in_front_backward(config, hidden, x, above, gradients);
  constexpr double kStep = 1e-6;
  const auto difference = [&](at::Tensor flat, int64_t i, const at::Tensor& at) {
    const auto value = flat[i].item<double>();
    flat[i] = value + kStep;
    const double up = (result(at) * above).sum().item<double>();
    flat[i] = value - kStep;
    const double down = (result(at) * above).sum().item<double>();
    flat[i] = value;
    return (up - down) / (2 * kStep);
  };
  for (size_t p = 0; p < hidden.size(); ++p)
    for (int64_t i = 0; i < hidden[p].numel(); ++i)
      ASSERT_NEAR(gradients[p].flatten()[i].item<double>(), difference(hidden[p].view({-1}), i, x),
                  1e-6)
          << p << " " << i;
  if (!back) return;
  at::Tensor moved = x.clone();
  for (int64_t i = 0; i < moved.numel(); ++i)
    ASSERT_NEAR(of_x.flatten()[i].item<double>(), difference(moved.view({-1}), i, moved), 1e-6);
}

TEST(Hidden, GradientsAreThoseOfDifferences) {
  expect_gradients(config_of("mlp", "9,5"), false);
  expect_gradients(config_of("deep", "6,6"), false);
  expect_gradients(config_of("linear", "", "deep"), true);
}

TEST(Hidden, WidthsThatCannotBeAreRefused) {
  for (const char* widths : {"", "0", "-3", "7,", ",7", "7;8", "x", "99999999999999999999"}) {
    const Error error = error_of([&] { hidden_widths(config_of("mlp", widths), kWidth); });
    EXPECT_EQ(error.code(), ExitCode::usage) << widths;
  }
  EXPECT_EQ(error_of([] { hidden_widths(config_of("deep", "6,7"), kWidth); }).code(),
            ExitCode::usage);
  EXPECT_THAT(hidden_widths(config_of("deep", ""), kWidth), testing::ElementsAre(kWidth));
  EXPECT_EQ(encoder_width(config_of("mlp", "9,5"), kWidth), 5);
}

}  // namespace
}  // namespace megadict
