#include "app/settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "support/temp_folder.h"
#include "train/schedule.h"

namespace megadict {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr DataFacts kFacts{.width = 576, .rows = 100000, .steps = 400, .tokens = 98304, .ranks = 4};

TEST(CheckAgainstData, ResolvesEveryZero) {
  Settings s;
  s.config.data.batch_size = 2048;
  check_config(s.config);
  check_against_data(s, kFacts);
  const Config& c = s.config;
  EXPECT_EQ(c.data.tokens, 98304);
  EXPECT_EQ(c.data.micro_batch_size, 2048);
  EXPECT_EQ(c.model.n_latents, 32 * 576);
  EXPECT_DOUBLE_EQ(c.optim.lr, 0.003);  // 2e-4 / sqrt(18432 / 16384) * sqrt(1e5 / 400), two digits
  EXPECT_EQ(c.optim.warmup_steps, 20);
  EXPECT_EQ(c.dead.k_aux, 288);
  EXPECT_EQ(c.dead.window_tokens, 9830);
  EXPECT_EQ(c.mesh.data, 1);
  EXPECT_EQ(c.mesh.feature, 4);
  for (const char* name :
       {"data.tokens", "data.micro_batch_size", "model.n_latents", "optim.lr", "optim.warmup_steps",
        "dead.k_aux", "dead.window_tokens", "mesh.data", "mesh.feature"})
    EXPECT_EQ(source_of(s, name), "resolved") << name;
  EXPECT_EQ(source_of(s, "model.k"), "default");
}

TEST(CheckAgainstData, LearningRateByRule) {
  const auto resolved = [](double lr, int64_t steps, int64_t batch = 2048) {
    Settings s;
    s.config.data.batch_size = batch;
    s.config.model.n_latents = 65536;
    s.config.optim.lr = lr;
    DataFacts facts = kFacts;
    facts.steps = steps;
    check_against_data(s, facts);
    return s.config.optim.lr;
  };
  EXPECT_DOUBLE_EQ(resolved(kFieldRate, 400), 1e-4);
  EXPECT_DOUBLE_EQ(resolved(kAutoRate, 100000), 1e-4);
  EXPECT_DOUBLE_EQ(resolved(kAutoRate, 1000000), 1e-4);  // never below the field's
  EXPECT_DOUBLE_EQ(resolved(kAutoRate, 1000), 1e-3);
  EXPECT_DOUBLE_EQ(resolved(kAutoRate, 10), 1.6e-3);    // nor far above
  EXPECT_DOUBLE_EQ(resolved(kAutoRate, 0), kAutoRate);  // a plan without a length
  EXPECT_DOUBLE_EQ(resolved(kAutoRate, 1000, 8192), 1.7e-3);
  EXPECT_DOUBLE_EQ(resolved(kAutoRate, 1000000, 512), 1e-4);
}

TEST(CheckAgainstData, LeavesWhatWasGiven) {
  Settings s;
  s.config.optim.lr = 1e-3;
  s.config.optim.warmup_steps = 0;
  s.config.model.n_latents = 64;
  s.config.dead.window_tokens = 77;
  s.config.mesh.data = 4;
  check_against_data(s, kFacts);
  EXPECT_EQ(s.config.optim.lr, 1e-3);
  EXPECT_EQ(s.config.optim.warmup_steps, 0);
  EXPECT_EQ(s.config.model.n_latents, 64);
  EXPECT_EQ(s.config.dead.window_tokens, 77);
  EXPECT_EQ(s.config.dead.k_aux, 64);  // half the width is more than there are
  EXPECT_EQ(s.config.mesh.feature, 1);
}

TEST(CheckAgainstData, LongRunsMeetTheCaps) {
  Settings s;
  s.config.data.tokens = 4000000000;
  check_against_data(s, {.width = 768, .rows = 1000000, .steps = 1000000, .tokens = 0, .ranks = 1});
  EXPECT_EQ(s.config.optim.warmup_steps, 1000);
  EXPECT_EQ(s.config.dead.window_tokens, 10000000);
}

struct BadCombination {
  void (*change)(Config&);
  const char* part_of_line;
};

TEST(CheckConfig, RefusesImpossibleCombinations) {
  for (const BadCombination& bad : std::vector<BadCombination>{
           {[](Config& c) { c.data.micro_batch_size = 5000; },
            "data.micro_batch_size = 5000 is more than data.batch_size = 4096"},
           {[](Config& c) { c.data.tokens = 100; },
            "data.tokens = 100 is less than data.batch_size = 4096"},
           {[](Config& c) { c.data.max_norm_multiple = 0.5; }, "data.max_norm_multiple = 0.5"},
           {[](Config& c) { c.model.n_latents = 16; },
            "model.k = 32 is more than model.n_latents = 16"},
           {[](Config& c) { c.debug.hang_at = std::string("encode"); }, "debug.hang_at"},
           {[](Config& c) { c.optim.beta2 = 1; }, "optim.beta2 = '1' (config): out of range"},
           {[](Config& c) { c.optim.lr = NAN; }, "optim.lr = 'nan' (config): out of range"},
           {[](Config& c) { c.model.encoder = "gru"; }, "model.encoder = 'gru'"},
           {[](Config& c) { c.model.encoder = "mlp"; }, "model.hidden = ''"},
       }) {
    Config config;
    bad.change(config);
    const Error refusal = test::error_of([&] { check_config(config); });
    EXPECT_EQ(refusal.code(), ExitCode::usage) << bad.part_of_line;
    EXPECT_TRUE(refusal.agreed());
    EXPECT_THAT(refusal.line(), HasSubstr(bad.part_of_line));
  }
}

TEST(CheckAgainstData, RefusesWhatTheDataForbids) {
  for (const BadCombination& bad : std::vector<BadCombination>{
           {[](Config& c) { c.data.batch_size = 200000; },
            "data.batch_size = 200000 is more than the 100000 rows"},
           {[](Config& c) { c.model.n_latents = 20; }, "model.k = 32 is more than"},
           {[](Config& c) { c.dead.k_aux = 1000000; }, "dead.k_aux = 1000000 is more than"},
           {[](Config& c) { c.optim.warmup_steps = 401; },
            "optim.warmup_steps = 401 is more than the 400 steps"},
           {[](Config& c) { c.model.k = 1, c.model.n_latents = 3; },
            "mesh.feature = 4 is more than model.n_latents = 3"},
           {[](Config& c) { c.debug.hang_rank = 4; }, "debug.hang_rank = 4 with 4 rank(s)"},
           {[](Config& c) { c.mesh.data = 3; }, "mesh.data 3 does not divide 4 ranks"},
       }) {
    Settings s;
    bad.change(s.config);
    const Error refusal = test::error_of([&] { check_against_data(s, kFacts); });
    EXPECT_EQ(refusal.code(), ExitCode::usage) << bad.part_of_line;
    EXPECT_TRUE(refusal.agreed());
    EXPECT_THAT(refusal.line(), HasSubstr(bad.part_of_line));
  }
}

TEST(CheckAgainstData, KeepsASmallDataSetWithoutDropping) {
  Settings s;
  s.config.data.last_batch = "keep";
  s.config.data.batch_size = 200000;
  EXPECT_NO_THROW(check_against_data(s, kFacts));
}

TEST(Remarks, NameWhatHasNoEffect) {
  Settings s;
  EXPECT_THAT(remarks_on(s, kFacts), IsEmpty());
  s.sources["model.l1_coefficient"] = "a.ini:4";
  EXPECT_THAT(remarks_on(s, kFacts),
              ::testing::ElementsAre("model.l1_coefficient (a.ini:4) has no effect: "
                                     "model.activation = topk"));
  s.config.model.activation = "relu";
  EXPECT_THAT(remarks_on(s, kFacts), ::testing::ElementsAre(HasSubstr("l1_warmup_steps = 2000")));
}

}  // namespace
}  // namespace megadict
