#include "comm/launch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/mpi_main.h"

namespace megadict {
namespace {

TEST(Launch, KnowsItsRanks) {
  const LaunchFacts& facts = test_launch().facts();
  const Communicator& world = test_world();
  EXPECT_EQ(facts.rank, world.rank());
  EXPECT_EQ(facts.ranks, world.size());
  EXPECT_EQ(world.axis(), "world");
  // Tests run on one node.
  EXPECT_EQ(facts.local_rank, facts.rank);
  EXPECT_EQ(facts.local_ranks, facts.ranks);
  EXPECT_EQ(facts.node, 0);
  EXPECT_EQ(facts.nodes, 1);
  EXPECT_FALSE(facts.host.empty());
  EXPECT_GE(facts.cpus, facts.cpus_least);
  EXPECT_GE(facts.cpus_least, 1);
  EXPECT_GE(facts.cpu_sharers, 1);
  EXPECT_LE(facts.cpu_sharers, facts.local_ranks);
}

TEST(Launch, GivesHostMemoryTheWorld) {
  EXPECT_EQ(&test_launch().world_for(Device::cpu), &test_world());
}

TEST(ResolveThreads, DividesTheMaskByItsSharers) {
  if (!environment("OMP_NUM_THREADS").empty())
    GTEST_SKIP() << "OMP_NUM_THREADS is set and would be taken";
  LaunchFacts facts;
  facts.cpus = facts.cpus_least = 8;
  facts.cpu_sharers = 3;
  EXPECT_EQ(resolve_threads(0, facts), 2);
  facts.cpu_sharers = 9;
  EXPECT_EQ(resolve_threads(0, facts), 1);
}

TEST(ResolveThreads, WarnsOnceWhenTheMaskIsSmaller) {
  LaunchFacts facts;
  facts.cpus = facts.cpus_least = 1;
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(resolve_threads(4, facts), 4);
  const std::string text = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(text, ::testing::HasSubstr("run.threads 4: a rank may use 1 processor only. hint: "
                                         "mpirun --bind-to none, srun --cpus-per-task=4\n"));
  facts.rank = 1;
  ::testing::internal::CaptureStderr();
  resolve_threads(4, facts);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

TEST(ResolveThreads, RefusesNegativeNumbers) {
  EXPECT_THROW(resolve_threads(-1, LaunchFacts{}), Error);
}

}  // namespace
}  // namespace megadict
