// kernels.isa where ranks' processors differ, and on a processor that lacks what is asked for.
#include "train/isa_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace megadict {
namespace {

TEST(IsaChoice, AutoTakesWhatAllHave) {
  for (const IsaFact& fact : all_isas()) EXPECT_EQ(resolve_isa("auto", fact.isa, false), fact.isa);
}

TEST(IsaChoice, WhatIsAskedForIsTakenOrRefused) {
  for (const IsaFact& common : all_isas())
    for (const IsaFact& asked : all_isas()) {
      const std::string name(asked.name);
      if (asked.isa <= common.isa) {
        EXPECT_EQ(resolve_isa(name, common.isa, false), asked.isa);
        EXPECT_EQ(resolve_isa(name, common.isa, true), asked.isa);
        continue;
      }
      // What auto picked before a resume gives way, but not in a run whose bits are to stay and
      // would not; what somebody asked for never does.
      EXPECT_EQ(resolve_isa(name, common.isa, true), common.isa);
      const bool same_bits = common.isa >= Isa::avx512;
      if (same_bits) {
        EXPECT_EQ(resolve_isa(name, common.isa, true, true), Isa::avx512);
      }
      for (const bool deterministic : {false, true}) try {
          if (deterministic && same_bits) continue;
          resolve_isa(name, common.isa, deterministic, deterministic);
          ADD_FAILURE() << name << " on " << common.name;
        } catch (const Error& error) {
          EXPECT_EQ(error.code(), ExitCode::usage);
          EXPECT_THAT(error.what(), testing::HasSubstr("kernels.isa = " + name));
          EXPECT_THAT(error.what(), testing::HasSubstr(std::string(common.name)));
        }
    }
}

}  // namespace
}  // namespace megadict
