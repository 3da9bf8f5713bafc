// Starts whole jobs of which one rank misbehaves: all ranks must end soon, with the right code and
// a line that names what happened.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/job.h"

namespace megadict {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(Job, EndsWellWithoutFault) {
  const Outcome outcome = job(3, MEGADICT_TEST_PROGRAM, "works");
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  EXPECT_THAT(outcome.text, HasSubstr("end\n"));
}

TEST(Watchdog, NamesARankThatDoesNotCome) {
  const Outcome outcome = job(3, MEGADICT_TEST_PROGRAM, "sleeps 2");
  EXPECT_EQ(outcome.code, 5);
  EXPECT_THAT(outcome.text,
              ContainsRegex("megadict: rank [01] .*: all_reduce 'partial sums' on axis feature, "
                            "step 12 lasts longer than 1.5 s. behind on this node: rank 2 .pid "
                            "[0-9]* left split 'data' on axis world, set-up [0-9.]* s ago.. hint"));
  EXPECT_EQ(occurrences(outcome.text, "lasts longer"), 1) << outcome.text;
}

// Over NCCL the start does everything, and nobody waits for the other half.
TEST(Watchdog, NamesARankThatIsBetweenTheHalvesOfACollective) {
  const Outcome outcome = job(3, MEGADICT_TEST_PROGRAM, "computes 2");
  EXPECT_EQ(outcome.code, 5);
  EXPECT_THAT(
      outcome.text,
      AnyOf(ContainsRegex("all_gather 'rows' on axis feature, step 12 lasts longer than 1.5 "
                          "s. behind on this node: rank 2 .pid [0-9]* left all_gather "
                          "'rows'"),
            ContainsRegex("barrier 'end of program' .* behind on this node: rank 2")));
}

TEST(OneRanksError, EndsAllThatWaitForTheOtherHalf) {
  const Outcome outcome = job(3, MEGADICT_TEST_PROGRAM, "computes 1 fails");
  EXPECT_EQ(outcome.code, 3);
  EXPECT_THAT(outcome.text, ContainsRegex("megadict: rank 1 .*: this rank cannot go on"));
}

TEST(Watchdog, EndsAStoppedRank) {
  for (const int rank : {0, 1}) {
    const Outcome outcome = job(3, MEGADICT_TEST_PROGRAM, fmt::format("stops {}", rank));
    EXPECT_EQ(outcome.code, 5);
    EXPECT_THAT(outcome.text, ContainsRegex(fmt::format(
                                  "behind on this node: rank {} .pid [0-9]* is stopped; ", rank)));
  }
}

TEST(Watchdog, NamesARankThatLeftEarly) {
  const Outcome outcome = job(2, MEGADICT_TEST_PROGRAM, "leaves 1");
  EXPECT_EQ(outcome.code, 5);
  // Each waits for the other, so either may speak first.
  EXPECT_THAT(outcome.text,
              AnyOf(ContainsRegex("behind .* rank 1 .pid [0-9]* in barrier 'end of "
                                  "program'"),
                    ContainsRegex("behind .* rank 0 .pid [0-9]* in all_reduce 'partial "
                                  "sums' on axis feature, step 12")));
}

TEST(OneRanksError, EndsAllWithItsCode) {
  for (const int code : {1, 3, 4}) {
    const Outcome outcome = job(3, MEGADICT_TEST_PROGRAM, fmt::format("fails 1 {}", code));
    EXPECT_EQ(outcome.code, code);
    EXPECT_THAT(outcome.text, ContainsRegex("megadict: rank 1 .*: this rank cannot go on. hint"));
  }
}

TEST(ErrorOfAllRanks, IsSaidOnce) {
  const Outcome outcome = job(4, MEGADICT_TEST_PROGRAM, "all_fail 0 3");
  EXPECT_EQ(outcome.code, 3);
  EXPECT_EQ(occurrences(outcome.text, "every rank finds the same file torn"), 1) << outcome.text;
  EXPECT_THAT(outcome.text, ContainsRegex("megadict: rank [0-3] .*: every rank finds"));
}

TEST(AgreedError, IsSaidOnce) {
  const Outcome outcome = job(4, MEGADICT_TEST_PROGRAM, "agreed 0 2");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_EQ(occurrences(outcome.text, "megadict: nobody can go on"), 1) << outcome.text;
}

struct Mismatch {
  const char* what;
  const char* line;
};

constexpr Mismatch kMismatches[] = {
    {"name",
     "rank 1 calls all_reduce 'other sums' (sum of 8 float32); rank 0 calls all_reduce "
     "'partial sums' (sum of 8 float32)"},
    {"count", "rank 1 calls all_reduce 'partial sums' (sum of 7 float32); rank 0 calls"},
    {"op", "rank 1 calls all_reduce 'partial sums' (max of 8 float32); rank 0 calls"},
    {"kind", "rank 1 calls barrier 'partial sums'; rank 0 calls all_reduce 'partial sums' (sum"},
    {"type",
     "rank 1 calls all_reduce 'sums' (sum of 8 int32); rank 0 calls all_reduce 'sums' (sum "
     "of 8 float32)"},
    {"root",
     "rank 1 calls broadcast 'spread' (8 float32 from 1); rank 0 calls broadcast 'spread' "
     "(8 float32 from 0)"},
};

TEST(CheckCollectives, NamesTheRankThatDiffers) {
  for (const Mismatch& row : kMismatches) {
    const Outcome outcome = job(3, MEGADICT_TEST_PROGRAM, fmt::format("mismatch 1 {}", row.what));
    EXPECT_EQ(outcome.code, 5);
    EXPECT_THAT(outcome.text, HasSubstr("ranks of axis feature do not agree: ")) << row.what;
    EXPECT_THAT(outcome.text, HasSubstr(row.line)) << row.what;
    EXPECT_EQ(occurrences(outcome.text, "do not agree"), 1) << outcome.text;
  }
}

TEST(CheckCollectives, ComparesTheBlocksOfAllToAll) {
  const Outcome outcome = job(3, MEGADICT_TEST_PROGRAM, "mismatch 1 blocks");
  EXPECT_EQ(outcome.code, 5);
  EXPECT_THAT(outcome.text, HasSubstr("rank 1 sends 3 elements, 2 are expected"));
}

TEST(HangRank, ParksWhereItWasAsked) {
  const Outcome outcome = job(2, MEGADICT_TEST_PROGRAM, "works 1 loss:7");
  EXPECT_EQ(outcome.code, 5);  // the watchdog of the others
  EXPECT_THAT(
      outcome.text,
      AllOf(ContainsRegex("r1 .*parked before all_reduce 'loss' on axis world, step 7. hint: "
                          "gdb -p [0-9]*, then set var megadict::debug_go_on = 1"),
            ContainsRegex("all_reduce 'loss' on axis world, step 7 lasts longer than 1.5 s. "
                          "behind on this node: rank 1 .pid [0-9]* left all_reduce 'partial "
                          "sums' on axis feature, step 7")));
}

TEST(HangRank, SaysWhenItsPlaceNeverCame) {
  const Outcome outcome = job(2, MEGADICT_TEST_PROGRAM, "works 1 loss:70");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.text, HasSubstr("warning: debug.hang_at 'loss:70' never came"));
}

TEST(HangRank, IsRefusedWhereThereIsNoSuchRank) {
  const Outcome outcome =
      shell(fmt::format("{} -n 2 {} works 2 loss", MEGADICT_TEST_MPIEXEC, MEGADICT_TEST_PROGRAM));
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.text, HasSubstr("megadict: debug.hang_rank 2: there are ranks 0 to 1\n"));
}

TEST(Gpus, AreRefusedInOneSentenceWhereThereIsNone) {
  const Outcome outcome = job(2, MEGADICT_TEST_PROGRAM, "gpus");
  if (outcome.text.find("GPUs 0") != std::string::npos)
    GTEST_SKIP() << "this machine has GPUs: " << outcome.text;
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(
      outcome.text,
      AnyOf(AllOf(HasSubstr("support: built without NCCL\n"),
                  HasSubstr("megadict: run.device cuda: built without NCCL. hint: configure "
                            "with -DMEGADICT_NCCL=ON\n")),
            AllOf(ContainsRegex("support: NCCL [0-9.]*, no GPU"),
                  ContainsRegex("megadict: run.device cuda: no GPU on [a-z0-9-]* .CUDA says "
                                ".*. hint: --run.device cpu"))));
}

TEST(Alone, RunsAndFailsWithoutALauncher) {
  const std::string program = MEGADICT_TEST_PROGRAM;
  Outcome outcome = shell(program + " works");
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  outcome = shell(program + " fails 0 3");
  EXPECT_EQ(outcome.code, 3);
  EXPECT_THAT(outcome.text, HasSubstr("\nmegadict: this rank cannot go on. hint: none\n"));
  outcome = shell("MEGADICT_MPI=1 " + program + " fails 0 4");
  EXPECT_EQ(outcome.code, 4);
  EXPECT_THAT(outcome.text, Not(HasSubstr("MPI_ABORT")));
}

TEST(BlindSrun, IsRefusedInOneLine) {
  const std::string program = MEGADICT_TEST_PROGRAM;
  for (const char* marks : {"", "PMIX_RANK=0 "}) {
    const Outcome outcome = shell(fmt::format(
        "env -u OMPI_COMM_WORLD_SIZE SLURM_STEP_NUM_TASKS=8 SLURM_PROCID=0 {}{}", marks, program));
    EXPECT_EQ(outcome.code, 2);
    EXPECT_THAT(outcome.text, HasSubstr("megadict: srun started 8 tasks but MPI sees 1. hint: srun "
                                        "--mpi=pmix\n"));
  }
  const Outcome other = shell("SLURM_STEP_NUM_TASKS=8 SLURM_PROCID=3 " + program);
  EXPECT_EQ(other.code, 2);
  EXPECT_EQ(other.text, "");
}

}  // namespace
}  // namespace megadict
