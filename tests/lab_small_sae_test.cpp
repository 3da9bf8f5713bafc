#include "lab/small_sae.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/philox.h"
#include "lab/code_rules.h"

namespace megadict {
namespace {

constexpr int64_t kSamples = 48, kWidth = 5, kLatents = 9;

Tiles<double> random_samples() {
  Tiles<double> x(kSamples, kWidth);
  const Rng rng{7, Purpose::test, 0};
  for (int64_t i = 0; i < kSamples; ++i)
    for (int64_t f = 0; f < kWidth; ++f)
      x.at(i, f) = rng.normals(static_cast<uint64_t>(i), static_cast<uint32_t>(f))[0];
  return x;
}

SaeSettings settings_of(const std::string& activation) {
  return {.width = kWidth,
          .latents = kLatents,
          .activation = activation,
          .k = 3,
          .lambda = 0.1,
          .unit_columns = false,
          .prolu_ste = false,
          .seed = 3};
}

struct Case {
  std::string name;
  SaeSettings settings;
  // Parameters whose rule is no derivative: a threshold's, or constants of one of its terms.
  std::vector<std::string> surrogate = {};
};

std::vector<Case> cases() {
  std::vector<Case> all = {{"vanilla", settings_of("relu")},
                           {"topk", settings_of("topk")},
                           {"jumprelu", settings_of("jumprelu"), {"t"}},
                           {"gated", settings_of("gated"), {"W_dec", "b_dec"}},
                           {"prolu", settings_of("prolu"), {"b"}}};
  Case tied{"tied", settings_of("relu")}, mlp{"mlp", settings_of("relu")};
  tied.settings.tied = tied.settings.bias = true;
  mlp.settings.hidden = {7, 6};
  mlp.settings.bias = true;
  Case mlp_gated{"mlp_gated", settings_of("gated"), {"W_dec", "b_dec"}};
  mlp_gated.settings.hidden = {11};
  all.insert(all.end(), {tied, mlp, mlp_gated});
  return all;
}

// Numbers that start at 0 or alike hide errors; thresholds stay where half of the codes are.
void shake(SmallSae<double>& sae) {
  const Rng rng{11, Purpose::test, 1};
  uint64_t id = 0;
  for (Learnt<double>* p : sae.parameters())
    for (double& value : p->value)
      value = p->name == "t" ? std::log(0.3) : value + 0.2 * rng.normals(id++)[0];
}

class SmallSaeGradients : public testing::TestWithParam<Case> {};

TEST_P(SmallSaeGradients, AreThoseOfCentralDifferences) {
  const Tiles<double> x = random_samples();
  SmallSae<double> sae(GetParam().settings);
  shake(sae);
  SaePass<double> pass, other;
  const SaeLoss loss = sae.gradients(x, pass);
  EXPECT_GT(loss.penalty, GetParam().name == "topk" ? -1 : 0);
  std::vector<std::vector<double>> gradients;
  for (const Learnt<double>* p : sae.parameters()) gradients.push_back(p->gradient);
  constexpr double kStep = 1e-6;
  for (size_t which = 0; which < gradients.size(); ++which) {
    Learnt<double>& p = *sae.parameters()[which];
    if (std::count(GetParam().surrogate.begin(), GetParam().surrogate.end(), p.name) > 0) continue;
    double largest = 0;
    for (const double g : gradients[which]) largest = std::max(largest, std::abs(g));
    EXPECT_GT(largest, 0) << p.name;
    for (size_t i = 0; i < p.value.size(); ++i) {
      const double kept = p.value[i];
      p.value[i] = kept + kStep;
      const double above = sae.gradients(x, other).total;
      p.value[i] = kept - kStep;
      const double below = sae.gradients(x, other).total;
      p.value[i] = kept;
      EXPECT_NEAR(gradients[which][i], (above - below) / (2 * kStep), 1e-6 * largest + 1e-9)
          << p.name << " " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, SmallSaeGradients, testing::ValuesIn(cases()),
                         [](const auto& one) { return one.param.name; });

// One tile in which sample 0, latent 0 alone says anything.
struct OneCode {
  explicit OneCode(const SaeSettings& of) : settings(of), rule(code_rule<double>(of.activation)) {
    for (const std::string_view name : rule.learnt) learnt.emplace_back(std::string(name), 1, 1);
    for (Tiles<double>* tiles : {&pass.pre, &pass.codes, &pass.d_codes, &pass.d_pre})
      *tiles = Tiles<double>(kLane, 1);
  }
  void at(double pre, double upstream) {
    pass.pre.at(0, 0) = pre;
    pass.d_codes.at(0, 0) = upstream;
    pass.d_pre.at(0, 0) = 0;
    for (Learnt<double>& p : learnt) p.gradient[0] = 0;
    rule.encode(args());
    if (rule.penalty != nullptr && rule.name == "jumprelu") penalty = rule.penalty(args());
    rule.backward(args());
  }
  CodeArgs<double> args() { return {settings, learnt, x, decoder.view(), absent, pass}; }

  SaeSettings settings;
  const CodeRule<double>& rule;
  std::vector<Learnt<double>> learnt;
  Tiles<double> x{kLane, 1};
  Learnt<double> decoder{"W_dec", 1, 1}, absent;
  SaePass<double> pass;
  double penalty = 0;
};

// B8's hand case: theta = bandwidth = .001; lambda is that of one sample.
TEST(JumpRelu, HandCase) {
  constexpr double kLambda = 0.3, kUpstream = 2;
  OneCode one({.width = 1, .latents = 1, .activation = "jumprelu", .lambda = kLambda * kLane});
  one.learnt[0].value[0] = std::log(0.001);
  one.at(0.0012, kUpstream);
  EXPECT_DOUBLE_EQ(one.pass.codes.at(0, 0), 0.0012);
  EXPECT_DOUBLE_EQ(one.pass.d_pre.at(0, 0), kUpstream);
  EXPECT_NEAR(one.learnt[0].gradient[0], -0.001 * kUpstream - kLambda, 1e-12);
  EXPECT_NEAR(one.penalty, kLambda, 1e-12);
  one.at(0.0016, kUpstream);
  EXPECT_DOUBLE_EQ(one.pass.d_pre.at(0, 0), kUpstream);
  EXPECT_EQ(one.learnt[0].gradient[0], 0);
  one.at(0.0008, kUpstream);
  EXPECT_EQ(one.pass.codes.at(0, 0), 0);
  EXPECT_EQ(one.pass.d_pre.at(0, 0), 0);
  EXPECT_NEAR(one.learnt[0].gradient[0], -0.001 * kUpstream - kLambda, 1e-12);
  EXPECT_EQ(one.penalty, 0);
}

// B9's two gradients, inside the gate and outside.
TEST(ProLu, BothGradients) {
  for (const bool ste : {true, false}) {
    OneCode one({.width = 1, .latents = 1, .activation = "prolu", .prolu_ste = ste});
    one.learnt[0].value[0] = -0.5;
    one.at(0.8, 3);
    EXPECT_EQ(one.pass.codes.at(0, 0), 0.8);
    EXPECT_DOUBLE_EQ(one.pass.d_pre.at(0, 0), ste ? 1.8 * 3 : 3);
    EXPECT_DOUBLE_EQ(one.learnt[0].gradient[0], ste ? 0.8 * 3 : 3);
    for (const double closed : {0.4, -0.2}) {
      one.at(closed, 3);
      EXPECT_EQ(one.pass.codes.at(0, 0), 0);
      EXPECT_EQ(one.pass.d_pre.at(0, 0), 0);
      EXPECT_EQ(one.learnt[0].gradient[0], 0);
    }
    one.learnt[0].value[0] = 0.5;
    one.at(-0.2, 3);  // m + b > 0 is not enough
    EXPECT_EQ(one.pass.codes.at(0, 0), 0);
  }
}

TEST(ProLu, IsScaleConsistentWithoutBias) {
  SaeSettings settings = settings_of("prolu");
  const SmallSae<double> sae(settings);
  Tiles<double> x = random_samples(), twice = x;
  for (double& value : twice.values()) value *= 2.5;
  SaePass<double> pass, of_twice;
  sae.forward(x, pass);
  sae.forward(twice, of_twice);
  for (size_t i = 0; i < pass.codes.values().size(); ++i)
    EXPECT_NEAR(of_twice.codes.values()[i], 2.5 * pass.codes.values()[i], 1e-12);
}

// B7: the gates' own reconstruction sees decoder and b_dec as constants.
TEST(Gated, ThirdTermLeavesTheDecoderAlone) {
  const Tiles<double> x = random_samples();
  SmallSae<double> sae(settings_of("gated"));
  shake(sae);
  SaePass<double> pass;
  sae.gradients(x, pass);
  for (Learnt<double>* p : sae.parameters()) {
    if (p->name == "W_dec") {
      Learnt<double> expected("", p->rows, p->cols);
      add_outer(pass.d_x_hat, pass.codes, expected.gradient_view());
      EXPECT_EQ(p->gradient, expected.gradient);
    }
    if (p->name == "b_dec") {
      std::vector<double> decoder_side(kWidth), encoder_side(kWidth);
      add_sums(pass.d_x_hat, decoder_side.data());
      add_sums(pass.d_centred, encoder_side.data());
      for (size_t i = 0; i < decoder_side.size(); ++i)
        EXPECT_DOUBLE_EQ(p->gradient[i], decoder_side[i] - encoder_side[i]);
    }
  }
}

TEST(TopK, TiesGoToTheLowerLatentAndNothingNegativeStays) {
  OneCode one({.width = 1, .latents = 1, .activation = "topk", .k = 2});
  const int64_t latents = 4;
  for (Tiles<double>* tiles : {&one.pass.pre, &one.pass.codes, &one.pass.d_codes, &one.pass.d_pre})
    *tiles = Tiles<double>(kLane, latents);
  const std::vector<double> row = {1, 3, 1, 1}, second = {-1, -2, 4, -3};
  for (int64_t j = 0; j < latents; ++j) {
    one.pass.pre.at(0, j) = row[static_cast<size_t>(j)];
    one.pass.pre.at(1, j) = second[static_cast<size_t>(j)];
  }
  one.rule.encode(one.args());
  const std::vector<double> kept = {1, 3, 0, 0}, positive = {0, 0, 4, 0};
  for (int64_t j = 0; j < latents; ++j) {
    EXPECT_EQ(one.pass.codes.at(0, j), kept[static_cast<size_t>(j)]);
    EXPECT_EQ(one.pass.codes.at(1, j), positive[static_cast<size_t>(j)]);
  }
}

TEST(SmallSae, RefusesWhatDoesNotGoTogether) {
  SaeSettings gated = settings_of("gated"), deep = settings_of("relu"), topk = settings_of("topk");
  gated.tied = deep.tied = true;
  deep.hidden = {4};
  topk.k = kLatents + 1;
  for (const SaeSettings& settings : {gated, deep, topk}) {
    EXPECT_NE(problem_with(settings), "");
    EXPECT_THROW(SmallSae<float>{settings}, Error);
  }
  EXPECT_EQ(problem_with(settings_of("relu")), "");
}

}  // namespace
}  // namespace megadict
