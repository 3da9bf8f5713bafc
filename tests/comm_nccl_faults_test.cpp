// Jobs on the NCCL stand-in of which one rank misbehaves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/job.h"

namespace megadict {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

std::string nccl_fault(const std::string& fault) {
  const Outcome outcome = job(3, MEGADICT_NCCL_FAULT_PROGRAM, fault);
  EXPECT_EQ(outcome.code, 5) << outcome.text;
  return outcome.text;
}

TEST(NcclFault, NothingIsWrongWithoutOne) {
  const Outcome outcome = job(3, MEGADICT_NCCL_FAULT_PROGRAM, "");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.text, HasSubstr("end\n"));
}

TEST(NcclFault, OpenGroupIsNamed) {
  EXPECT_THAT(nccl_fault("open_group"),
              HasSubstr("all_reduce 'partial sums' (axis world, rank 1 of 3): NCCL says invalid "
                        "usage: a group of 1 calls is open where its work is waited for: "
                        "ncclGroupEnd is missing"));
  EXPECT_THAT(
      nccl_fault("open_empty_group"),
      HasSubstr("all_to_all 'codes' (axis world, rank 1 of 3): CUDA says an empty NCCL group "
                "is open"));
}

TEST(NcclFault, SwappedCallsAreNamed) {
  const char* reduce = "at all_reduce (sum) of 8 float32 from 0";
  const char* gather = "at all_gather (sum) of 2 float32 from 0";
  EXPECT_THAT(nccl_fault("swap"),
              AnyOf(HasSubstr(fmt::format("rank 1 is {}, rank 0 {}", gather, reduce)),
                    HasSubstr(fmt::format("rank 1 is {}, rank 2 {}", gather, reduce)),
                    HasSubstr(fmt::format("rank 0 is {}, rank 1 {}", reduce, gather))));
}

TEST(NcclFault, DifferentCallsAreNamed) {
  EXPECT_THAT(nccl_fault("count"), ContainsRegex("all_reduce .sum. of 7 float32"));
  EXPECT_THAT(nccl_fault("op"), ContainsRegex("all_reduce .max. of 8 float32"));
  EXPECT_THAT(nccl_fault("root"), ContainsRegex("broadcast .sum. of 8 float32 from 1"));
  EXPECT_THAT(nccl_fault("blocks"), ContainsRegex("send of 3 and receive of 2 float32"));
}

TEST(NcclFault, SilentRankIsNamed) {
  EXPECT_THAT(nccl_fault("silent"),
              ContainsRegex("NCCL says remote process exited or there was a network error: "
                            "all_reduce .sum. of 8 float32 from 0: no sign for 1 s of rank 1"));
  EXPECT_THAT(nccl_fault("absent"), AnyOf(HasSubstr("only 1 of 3 ranks came to ncclCommInitRank"),
                                          HasSubstr("only 2 of 3 ranks came to ncclCommInitRank"),
                                          HasSubstr("rank 0 did not answer in ncclCommInitRank")));
}

TEST(NcclWatchdog, NamesARankThatDoesNotCome) {
  const Outcome outcome = job(3, MEGADICT_TEST_PROGRAM, "sleeps 2");
  EXPECT_EQ(outcome.code, 5);
  EXPECT_THAT(outcome.text,
              ContainsRegex("all_reduce 'partial sums' on axis feature, step 12 lasts longer than "
                            "1.5 s. behind on this node: rank 2 .pid [0-9]* left"));
}

TEST(NcclWatchdog, EndsAStoppedRank) {
  const Outcome outcome = job(3, MEGADICT_TEST_PROGRAM, "stops 0");
  EXPECT_EQ(outcome.code, 5);
  EXPECT_THAT(outcome.text, ContainsRegex("behind on this node: rank 0 .pid [0-9]* is stopped"));
}

TEST(NcclCheckCollectives, NamesTheRankThatDiffers) {
  const Outcome outcome = job(3, MEGADICT_TEST_PROGRAM, "mismatch 1 count");
  EXPECT_EQ(outcome.code, 5);
  EXPECT_THAT(outcome.text, HasSubstr("rank 1 calls all_reduce 'partial sums' (sum of 7 float32)"));
}

TEST(NcclJob, EndsWellWithoutFault) {
  const Outcome outcome = job(3, MEGADICT_TEST_PROGRAM, "works");
  EXPECT_EQ(outcome.code, 0) << outcome.text;
}

}  // namespace
}  // namespace megadict
