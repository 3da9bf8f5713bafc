#include "comm/agree.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <optional>

#include "base/error.h"
#include "support/mpi_main.h"

namespace megadict {
namespace {

std::optional<Error> error_of(Communicator& world, const std::function<void()>& work) {
  try {
    agree(world, work);
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

TEST(Agree, NothingIsThrownWhereNobodyFails) {
  int done = 0;
  EXPECT_FALSE(error_of(test_world(), [&] { ++done; }).has_value());
  EXPECT_EQ(done, 1);
}

TEST(Agree, EveryRankCanBeTheOneThatFails) {
  Communicator& world = test_world();
  for (int rank = 0; rank < world.size(); ++rank) {
    const auto error = error_of(world, [&] {
      if (world.rank() == rank) fail(ExitCode::bad_data, fmt::format("of {}", rank), "look");
    });
    EXPECT_TRUE(error.has_value());
    if (!error) continue;
    EXPECT_EQ(error->code(), ExitCode::bad_data);
    EXPECT_EQ(error->hint(), "look");
    EXPECT_TRUE(error->agreed() || world.size() == 1);
    const std::string text = error->what();
    EXPECT_TRUE(text.ends_with(fmt::format("of {}", rank))) << text;
    EXPECT_EQ(text.starts_with(fmt::format("rank {} (", rank)), world.size() > 1) << text;
  }
}

TEST(Agree, TheLowestRankSpeaksForAll) {
  Communicator& world = test_world();
  const auto error = error_of(world, [&] {
    if (world.rank() > 0 || world.size() == 1)
      fail(world.rank() < 2 ? ExitCode::usage : ExitCode::error,
           fmt::format("of {}", world.rank()));
  });
  EXPECT_TRUE(error.has_value());
  if (!error) return;
  EXPECT_EQ(error->code(), ExitCode::usage);
  EXPECT_TRUE(std::string(error->what()).ends_with(world.size() > 1 ? "of 1" : "of 0"));
}

TEST(Agree, WhatAllMeetAlikeNamesNoRank) {
  const auto error = error_of(test_world(), [] { fail_agreed(ExitCode::usage, "all"); });
  EXPECT_TRUE(error.has_value());
  EXPECT_STREQ(error ? error->what() : "", "all");
}

// A part of a launch has ranks and a world of its own; parts end at different times.
TEST(LaunchPart, CountsItsOwnRanks) {
  Launch& whole = test_launch();
  const int rank = whole.facts().rank, ranks = whole.facts().ranks;
  {
    Launch part(whole, rank % 2);
    EXPECT_EQ(part.facts().rank, rank / 2);
    EXPECT_EQ(part.facts().ranks, (ranks + 1 - rank % 2) / 2);
    EXPECT_EQ(part.world().size(), part.facts().ranks);
    for (int i = 0; i < 3 * (rank % 2); ++i) {
      int32_t sum = rank;
      part.world().all_reduce(view_of(&sum, 1), ReduceOp::sum, "ranks");
      const int members = part.facts().ranks;
      EXPECT_EQ(sum, members * members);  // 1 + 3 + 5 ...
    }
  }
  test_launch().world().wait_for_all();
}

}  // namespace
}  // namespace megadict
