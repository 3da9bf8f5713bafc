#include "app/saved_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "app/fields.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using nlohmann::ordered_json;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr DataFacts kFacts{.width = 64, .rows = 100000, .steps = 200, .tokens = 100000, .ranks = 2};

Settings resolved() {
  Settings s;
  s.config.data.path = "acts";
  s.sources["data.path"] = "command line";
  check_against_data(s, kFacts);
  return s;
}

TEST(ConfigJson, HoldsEveryFieldWithItsSource) {
  Settings s = resolved();
  s.config.run.seed = 18446744073709551615u;
  const ordered_json json = ordered_json::parse(config_json(s).dump());
  Config config;
  ASSERT_EQ(json.size(), fields_of(config).size());
  for (const std::string& name : names_of(fields_of(config))) ASSERT_TRUE(json.contains(name));
  EXPECT_EQ(json["data.path"]["value"], "acts");
  EXPECT_EQ(json["data.path"]["source"], "command line");
  EXPECT_EQ(json["model.n_latents"]["value"], 2048);
  EXPECT_EQ(json["model.n_latents"]["source"], "resolved");
  EXPECT_EQ(json["model.k"]["source"], "default");
  EXPECT_EQ(json["run.seed"]["value"].get<uint64_t>(), 18446744073709551615u);
}

TEST(Resume, SameSettingsDifferInNothing) {
  const Settings s = resolved();
  const ordered_json saved = ordered_json::parse(config_json(s).dump());
  EXPECT_THAT(compare_for_resume(saved, "config.json", s), IsEmpty());
}

TEST(Resume, TellsFixedNoticeAndFreeApart) {
  const ordered_json saved = config_json(resolved());
  Settings now = resolved();
  now.config.model.k = 16;
  now.config.optim.lr = 0.125;
  now.config.mesh.data = 2;
  const auto differences = compare_for_resume(saved, "config.json", now);
  ASSERT_EQ(differences.size(), 3u);
  EXPECT_EQ(differences[0].name, "model.k");
  EXPECT_EQ(differences[0].before, "32");
  EXPECT_EQ(differences[0].after, "16");
  EXPECT_EQ(differences[0].on_resume, OnResume::fixed);
  EXPECT_EQ(differences[1].on_resume, OnResume::notice);
  EXPECT_EQ(differences[2].on_resume, OnResume::free);
  const Error refusal = test::error_of([&] { refuse_fixed(differences, "runs/a"); });
  EXPECT_EQ(refusal.code(), ExitCode::usage);
  EXPECT_THAT(refusal.line(), HasSubstr("cannot resume 'runs/a': fixed fields differ: model.k '32' "
                                        "-> '16'"));
  EXPECT_THAT(refusal.line(), ::testing::Not(HasSubstr("optim.lr")));
}

// A longer run would resolve warm-up and window anew; the resumed one must not.
TEST(Resume, KeepsWhatTheOldRunResolved) {
  const ordered_json saved = config_json(resolved());
  Settings now;
  now.config.data.path = "acts";
  now.config.data.tokens = 1000000;
  now.sources = {{"data.path", "command line"}, {"data.tokens", "command line"}};
  adopt_saved_resolutions(saved, "config.json", now);
  check_against_data(now, {.width = 64, .rows = 100000, .steps = 2000, .tokens = 0, .ranks = 6});
  EXPECT_EQ(now.config.optim.warmup_steps, 10);
  EXPECT_EQ(now.config.dead.window_tokens, 10000);
  EXPECT_EQ(now.config.data.tokens, 1000000);
  EXPECT_EQ(now.config.mesh.feature, 6);
  EXPECT_EQ(source_of(now, "optim.warmup_steps"), "resolved");
}

// `--optim.lr auto` typed again is no wish for another rate.
TEST(Resume, KeepsWhatTheOldRunResolvedWhereAutoIsTyped) {
  Settings before = resolved();
  const double rate = before.config.optim.lr = 0.0625;
  const ordered_json saved = config_json(before);
  Settings now;
  now.sources = {{"optim.lr", "command line"}};
  adopt_saved_resolutions(saved, "config.json", now);
  EXPECT_EQ(now.config.optim.lr, rate);
  now.config.optim.lr = kFieldRate;  // but this is one
  now.sources["optim.lr"] = "command line";
  adopt_saved_resolutions(saved, "config.json", now);
  EXPECT_EQ(now.config.optim.lr, kFieldRate);
}

TEST(Resume, CountsAFieldOfALaterVersionAsItsDefault) {
  ordered_json saved = config_json(resolved());
  saved.erase("model.decoder");
  Settings now = resolved();
  EXPECT_THAT(compare_for_resume(saved, "config.json", now), IsEmpty());
  now.config.model.decoder = "tied";
  ASSERT_EQ(compare_for_resume(saved, "config.json", now).size(), 1u);
}

TEST(Resume, RefusesAFileThatIsNoConfig) {
  Settings now = resolved();
  for (const char* text : {"[]", "3", R"({"model.k": 3})", R"({"model.k": {"value": 3}})",
                           R"({"model.k": {"value": 3, "source": 4}})"}) {
    const Error refusal = test::error_of(
        [&] { compare_for_resume(ordered_json::parse(text), "runs/a/config.json", now); });
    EXPECT_EQ(refusal.code(), ExitCode::bad_data) << text;
    EXPECT_THAT(refusal.line(), HasSubstr("cannot use 'runs/a/config.json'"));
  }
}

}  // namespace
}  // namespace megadict
