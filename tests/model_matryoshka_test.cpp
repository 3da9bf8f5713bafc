// What model.matryoshka means, and what it may not say.
#include "model/matryoshka.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace megadict {
namespace {

std::vector<int64_t> ends(const std::string& text, int64_t n) {
  ModelConfig config;
  config.matryoshka = text;
  std::vector<int64_t> out;
  for (const Level& level : levels_of(config, n)) out.push_back(level.latents.end);
  return out;
}

std::string refusal(const std::string& text, const std::string& weights, int64_t n) {
  ModelConfig config;
  config.matryoshka = text;
  config.matryoshka_weights = weights;
  try {
    levels_of(config, n);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    return error.what();
  }
  return "";
}

TEST(Matryoshka, SizesAndSharesEndWithTheWholeDictionary) {
  using ::testing::ElementsAre;
  EXPECT_THAT(ends("", 100), ElementsAre(100));
  EXPECT_THAT(ends("100", 100), ElementsAre(100));
  EXPECT_THAT(ends("10, 0.25,70", 100), ElementsAre(10, 25, 70, 100));
  EXPECT_THAT(ends("1,99,100", 100), ElementsAre(1, 99, 100));
}

TEST(Matryoshka, WeightsAddUpToOneUnlessTheyAreGiven) {
  ModelConfig config;
  config.matryoshka = "10,20,50";
  for (const Level& level : levels_of(config, 100)) EXPECT_EQ(level.weight, 0.25);
  config.matryoshka_weights = "4,3,2,1";
  EXPECT_EQ(levels_of(config, 100)[1].weight, 3);
  EXPECT_EQ(levels_of(config, 100)[1].latents.begin, 10);
}

TEST(Matryoshka, WhatMeansNothingIsRefused) {
  using ::testing::HasSubstr;
  EXPECT_THAT(refusal("10,5", "", 100), HasSubstr("a prefix of 5 latents after one of 10"));
  EXPECT_THAT(refusal("101", "", 100), HasSubstr("allowed: 1 to 100"));
  EXPECT_THAT(refusal("2.5", "", 100), HasSubstr("'2.5' of 100 latents"));
  EXPECT_THAT(refusal("0.001", "", 100), HasSubstr("allowed: 1 to 100"));
  for (const char* text : {"ten", "1,,2", "-3", "inf", "nan", "5,"})
    EXPECT_THAT(refusal(text, "", 100), HasSubstr("is no number above 0")) << text;
  EXPECT_THAT(refusal("10", "1", 100), HasSubstr("1 weights for 2 prefixes"));
  EXPECT_THAT(refusal("", "1", 100), HasSubstr("there are no prefixes"));
}

}  // namespace
}  // namespace megadict
