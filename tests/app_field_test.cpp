#include "app/field.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <set>

#include "app/fields.h"
#include "base/error.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using ::testing::HasSubstr;

TEST(Fields, NamesAreTheFrozenOnes) {
  std::ifstream file(MEGADICT_SOURCE_DIR "/tests/golden/fields.txt");
  std::vector<std::string> frozen;
  for (std::string line; std::getline(file, line);) frozen.push_back(line);
  Config config;
  EXPECT_EQ(names_of(fields_of(config)), frozen)
      << "a field was added, renamed or removed: change tests/golden/fields.txt with it";
}

TEST(Fields, EachHasItsOwnMemberAndAHelpText) {
  Config config;
  std::set<const void*> members;
  size_t count = 0;
  for_each_field(config, [&](const Field& field, auto& member) {
    EXPECT_TRUE(members.insert(&member).second) << field.name;
    EXPECT_FALSE(field.help.empty()) << field.name;
    EXPECT_EQ(std::count(field.name.begin(), field.name.end(), '.'), 1) << field.name;
    ++count;
  });
  EXPECT_EQ(count, fields_of(config).size());
}

TEST(Fields, WordsStandForNumbers) {
  double rate = 0.5;
  const Field field{"optim.lr", &rate, "", "rate", or_word(between(0, 10), {{"auto", -1.0}})};
  set_field(field, "auto", "here");
  EXPECT_EQ(rate, -1);
  EXPECT_EQ(value_text(field), "auto");
  EXPECT_EQ(allowed_text(field), "a number, 0 to 10, or auto");
  EXPECT_NO_THROW(check_field(field, "config"));
  for (const char* text : {"-1", "Auto", "aut", "11"})  // its number is not for users
    EXPECT_THROW(set_field(field, text, "here"), Error) << text;
  set_field(field, "0.25", "here");
  EXPECT_EQ(value_text(field), "0.25");
}

TEST(Fields, DefaultsAreAllowed) {
  Config config;
  for (const Field& field : fields_of(config)) EXPECT_NO_THROW(check_field(field, "default"));
}

// What a resume refuses, notes, and lets pass.
TEST(Fields, ResumeClasses) {
  const std::map<std::string, OnResume> by_section = {
      {"model", OnResume::fixed}, {"dead", OnResume::notice}, {"optim", OnResume::notice},
      {"mesh", OnResume::free},   {"log", OnResume::free},    {"checkpoint", OnResume::free},
      {"debug", OnResume::free},  {"eval", OnResume::free},
  };
  const std::set<std::string> fixed = {"optim.name",          "run.seed",       "data.batch_size",
                                       "data.shuffle_buffer", "data.normalize", "data.center"};
  Config config;
  for (const Field& field : fields_of(config)) {
    const auto section = by_section.find(field.name.substr(0, field.name.find('.')));
    const bool is_fixed = fixed.count(field.name) != 0;
    if (is_fixed || section != by_section.end()) {
      EXPECT_EQ(field.on_resume, is_fixed ? OnResume::fixed : section->second) << field.name;
    }
  }
}

struct Targets {
  std::string text = "old";
  bool flag = false;
  int small = 7;
  int64_t count = 7;
  uint64_t seed = 7;
  double rate = 7;
};

TEST(SetField, TakesEveryType) {
  Targets t;
  set_field({"a.text", &t.text, "", ""}, "some path/with = signs", "test");
  set_field({"a.flag", &t.flag, "", ""}, "true", "test");
  set_field({"a.small", &t.small, "", ""}, "-3", "test");
  set_field({"a.count", &t.count, "", ""}, "9007199254740993", "test");
  set_field({"a.seed", &t.seed, "", ""}, "18446744073709551615", "test");
  set_field({"a.rate", &t.rate, "", ""}, "2.5e-4", "test");
  EXPECT_EQ(t.text, "some path/with = signs");
  EXPECT_TRUE(t.flag);
  EXPECT_EQ(t.small, -3);
  EXPECT_EQ(t.count, 9007199254740993);
  EXPECT_EQ(t.seed, 18446744073709551615u);
  EXPECT_EQ(t.rate, 2.5e-4);
}

TEST(SetField, TakesWholeNumbersWithAnExponent) {
  Targets t;
  const Field field{"data.tokens", &t.count, "rows", ""};
  for (const auto& [text, value] : std::vector<std::pair<std::string, int64_t>>{
           {"1e3", 1000}, {"4e8", 400000000}, {"2.5e6", 2500000}, {"1E2", 100}, {"10e-1", 1}}) {
    set_field(field, text, "test");
    EXPECT_EQ(t.count, value) << text;
  }
}

struct Bad {
  const char* text;
  const char* part_of_line;
};

TEST(SetField, RefusesBadIntegers) {
  for (const Bad& bad : std::vector<Bad>{
           {"", "no value"},
           {" 5", "not an integer"},
           {"5 ", "not an integer"},
           {"1.0", "not an integer"},
           {"1.5e0", "not an integer"},
           {"1e-3", "not an integer"},
           {"0x10", "not an integer"},
           {"1,000", "not an integer"},
           {"ten", "not an integer"},
           {"nan", "not an integer"},
           {"inf", "not an integer"},
           {"1e400", "too large a number"},
           {"1e19", "too large a number"},
           {"99999999999999999999", "too large a number"},
           {"-1", "out of range"},
           {"1001", "out of range"},
       }) {
    Targets t;
    const Field field{"data.tokens", &t.count, "rows", "", between(0, 1000)};
    const Error refusal = test::error_of([&] { set_field(field, bad.text, "a.ini:3"); });
    EXPECT_EQ(refusal.code(), ExitCode::usage) << bad.text;
    EXPECT_TRUE(refusal.agreed());
    EXPECT_THAT(refusal.line(), HasSubstr("data.tokens = '"));
    EXPECT_THAT(refusal.line(), HasSubstr(bad.part_of_line));
    EXPECT_THAT(refusal.line(), HasSubstr("a.ini:3"));
    EXPECT_THAT(refusal.line(), HasSubstr("allowed: an integer, 0 to 1000"));
  }
}

TEST(SetField, RefusesBadNumbers) {
  for (const Bad& bad : std::vector<Bad>{
           {"", "no value"},
           {"nan", "not a finite number"},
           {"-inf", "not a finite number"},
           {"1e999", "does not fit a double"},
           {"1e-999", "does not fit a double"},
           {"0.5.5", "not a number"},
           {"1/32", "not a number"},
           {"1", "out of range"},
           {"-0.001", "out of range"},
       }) {
    Targets t;
    const Field field{"optim.beta1", &t.rate, "", "", from_to_below(0, 1)};
    const Error refusal = test::error_of([&] { set_field(field, bad.text, "command line"); });
    EXPECT_EQ(refusal.code(), ExitCode::usage) << bad.text;
    EXPECT_THAT(refusal.line(), HasSubstr(bad.part_of_line));
    EXPECT_THAT(refusal.line(), HasSubstr("allowed: a number, 0 to below 1"));
  }
}

TEST(SetField, RefusesNegativesOfUnsignedFields) {
  Targets t;
  const Field field{"run.seed", &t.seed, "", "", at_least(0)};
  EXPECT_THAT(test::error_of([&] { set_field(field, "-1", "x"); }).line(),
              HasSubstr("out of range"));
}

TEST(SetField, SuggestsTheNearestChoice) {
  Targets t;
  const Field field{"model.activation", &t.text, "", "", one_of({"topk", "relu"})};
  const Error refusal = test::error_of([&] { set_field(field, "topkk", "x"); });
  EXPECT_THAT(refusal.line(), HasSubstr("allowed: topk, relu"));
  EXPECT_THAT(refusal.line(), HasSubstr("did you mean 'topk'?"));
}

TEST(SetField, KeepsEveryMessageOnOneLine) {
  Targets t;
  const std::string nasty = "a\nb\r\tc\x1b[31m" + std::string(5000, 'x');
  const Field field{"data.tokens", &t.count, "", ""};
  const std::string line = test::error_of([&] { set_field(field, nasty, "x"); }).line();
  EXPECT_EQ(line.find_first_of("\n\r\t\x1b"), std::string::npos);
  EXPECT_LT(line.size(), 300u);
}

TEST(ValueText, ReadsBack) {
  Targets t;
  for (const double value : {0.1, 1.0 / 32, 6.25e-10, 1e9, 123456789.0, 5e-324}) {
    t.rate = value;
    const Field field{"a.rate", &t.rate, "", ""};
    const std::string text = value_text(field);
    t.rate = 0;
    set_field(field, text, "test");
    EXPECT_EQ(t.rate, value) << text;
  }
}

}  // namespace
}  // namespace megadict
