#include "data/shared_stream.h"

#include <gmock/gmock.h>

#include "support/mpi_main.h"
#include "support/shards.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::TempFolder;
using test::write_shards;
using testing::AllOf;
using testing::HasSubstr;

// This rank's place in one way to cut the ranks into groups and these into a mesh.
struct Place {
  int groups = 1, group = 0;
  int data = 1, feature = 1;
  int rank = 0;  // in the group
};

std::vector<Place> all_places(const Communicator& world) {
  std::vector<Place> places;
  for (int groups = 1; groups <= world.size(); ++groups)
    for (int data = 1; data * groups <= world.size(); ++data)
      if (world.size() % (groups * data) == 0) {
        const int ranks = world.size() / groups;
        places.push_back({groups, world.rank() / ranks, data, ranks / data, world.rank() % ranks});
      }
  return places;
}

class SharedRows : public testing::Test {
 protected:
  // Every rank has its own copy of the same shards.
  SharedRows() {
    config_.batch_size = 10;
    config_.micro_batch_size = 4;
    config_.shuffle_buffer = 25;
    config_.last_batch = "keep";
  }
  void open(int64_t epochs) {
    index_ = ShardIndex::open(folder_.path());
    config_.tokens = epochs * index_.rows();
    plan_.emplace(index_, config_, 11);
  }
  std::unique_ptr<BatchStream> own(const Place& at, int64_t first_step) {
    return std::make_unique<BatchStream>(index_, *plan_, at.data, at.feature, at.rank / at.feature,
                                         at.rank % at.feature, first_step, 3);
  }
  // Only the first group may open its rows.
  SharedStream::Open reader(const Place& at) {
    return [this, at](int64_t first_step) {
      ++opened_;
      EXPECT_EQ(at.group, 0);
      return own(at, first_step);
    };
  }
  static std::unique_ptr<Communicator> across(const Place& at) {
    return test_launch().world().split(at.rank, at.group, "sweep");
  }

  TempFolder folder_;
  ShardIndex index_;
  DataConfig config_;
  std::optional<BatchPlan> plan_;
  int opened_ = 0;
};

void expect_same(const MicroBatch& a, const MicroBatch& b) {
  EXPECT_EQ(a.step, b.step);
  EXPECT_EQ(a.micro, b.micro);
  EXPECT_EQ(a.last_of_step, b.last_of_step);
  EXPECT_EQ(a.batch_rows, b.batch_rows);
  EXPECT_EQ(a.rows, b.rows);
  EXPECT_EQ(a.part.row_range.begin, b.part.row_range.begin);
  EXPECT_EQ(a.part.row_range.end, b.part.row_range.end);
  EXPECT_EQ(a.part.slot, b.part.slot);
  EXPECT_EQ(a.part.padded, b.part.padded);
  EXPECT_EQ(a.part.owned.begin, b.part.owned.begin);
  EXPECT_EQ(a.dtype, b.dtype);
  EXPECT_EQ(a.row_ids, b.row_ids);
  EXPECT_EQ(a.data, b.data);
}

// Micro-batches of a stream from this step on, at most `most`, against one of this rank's own.
int64_t expect_as_alone(SharedStream& shared, BatchStream& alone, const BatchPlan& plan,
                        int64_t step, int64_t most = 1 << 20) {
  int64_t bytes = 0;
  for (; step < plan.steps(); ++step)
    for (int64_t micro = 0; micro < plan.micro_batches(step); ++micro) {
      if (most-- == 0) return bytes;
      const MicroBatch batch = shared.next();
      expect_same(batch, alone.next());
      bytes += static_cast<int64_t>(batch.data.size());
    }
  return bytes;
}

TEST_F(SharedRows, EveryGroupGetsWhatItWouldReadAlone) {
  write_shards(folder_.path(), {20, 1, 7, 29, 60}, {.dtype = DType::bf16});
  open(3);
  for (const Place& at : all_places(test_launch().world())) {
    const auto across = this->across(at);
    SharedStream shared(*across, reader(at));
    opened_ = 0;
    shared.start(0);
    const int64_t bytes = expect_as_alone(shared, *own(at, 0), *plan_, 0);
    shared.finish();
    EXPECT_EQ(opened_, at.group == 0 ? 1 : 0);
    EXPECT_EQ(across->counts().at("rows").bytes, at.group == 0 ? 0 : bytes);
    EXPECT_TRUE(at.group == 0 || shared.wait_seconds() == 0);
  }
}

// Runs that are resumed from different checkpoints.
TEST_F(SharedRows, EveryGroupStartsAtItsOwnStep) {
  write_shards(folder_.path(), {20, 1, 7, 29});
  open(2);
  for (const Place& at : all_places(test_launch().world())) {
    const auto across = this->across(at);
    SharedStream shared(*across, reader(at));
    const int64_t first = 1 + (at.group * 4 + 5) % (plan_->steps() - 1);
    shared.start(first);
    expect_as_alone(shared, *own(at, first), *plan_, first);
    shared.finish();
  }
}

// The reading group is the first to leave, another one never starts; and then all once more.
TEST_F(SharedRows, AGroupThatLeavesDoesNotEndTheOthers) {
  write_shards(folder_.path(), {20, 1, 7, 29});
  open(2);
  for (const Place& at : all_places(test_launch().world())) {
    const auto across = this->across(at);
    for (int wave = 0; wave < 2; ++wave) {
      SharedStream shared(*across, reader(at));
      if (at.group != 1) {
        shared.start(0);
        expect_as_alone(shared, *own(at, 0), *plan_, 0, 2 + 5 * at.group);
      }
      shared.finish();
      shared.finish();
    }
  }
}

// The earliest group leaves: the reader goes on where somebody needs rows.
TEST_F(SharedRows, RowsThatNobodyNeedsAreNotRead) {
  write_shards(folder_.path(), {20, 1, 7, 29});
  open(2);
  const int64_t last = plan_->steps() - 1;
  for (const Place& at : all_places(test_launch().world())) {
    const auto across = this->across(at);
    SharedStream shared(*across, reader(at));
    opened_ = 0;
    shared.start(at.group == 0 ? 0 : last);
    const auto alone = own(at, at.group == 0 ? 0 : last);
    expect_as_alone(shared, *alone, *plan_, at.group == 0 ? 0 : last, at.group == 0 ? 1 : 100);
    shared.finish();
    EXPECT_EQ(opened_, at.group > 0 ? 0 : at.groups > 1 ? 2 : 1);
    const int64_t rounds = 1 + (at.groups > 1 ? plan_->micro_batches(last) : 0);
    EXPECT_EQ(across->counts().at("rows").calls, rounds);
  }
}

TEST_F(SharedRows, ARowThatCannotBeReadFailsThoseWhoNeedIt) {
  test::write_shard_with_nan(folder_.path(), 60);
  config_.batch_size = config_.micro_batch_size = 6;
  open(1);
  int64_t bad = 0;
  for (int64_t step = 0; step < plan_->steps(); ++step)
    for (const int64_t row : plan_->rows(step, 0))
      if (row == 33) bad = step;
  ASSERT_LT(bad + 1, plan_->steps());
  for (const Place& at : all_places(test_launch().world())) {
    const auto across = this->across(at);
    SharedStream shared(*across, reader(at));
    const bool later = at.group % 2 == 1;
    const int64_t first = later ? bad + 1 : 0;
    shared.start(first);
    std::string error;
    try {
      expect_as_alone(shared, *own(at, first), *plan_, first);
    } catch (const Error& thrown) {
      error = thrown.line();
      EXPECT_EQ(thrown.code(), ExitCode::bad_data);
      EXPECT_EQ(thrown.agreed(), at.groups > 1);
    }
    shared.finish();
    const auto part = row_part(6, at.data, at.feature, at.rank / at.feature, at.rank % at.feature);
    bool mine = false;
    for (int64_t i = part.owned.begin; i < part.owned.end; ++i)
      mine |= plan_->rows(bad, 0)[static_cast<size_t>(part.row_range.begin + i)] == 33;
    if (mine && !later) {
      EXPECT_THAT(error, AllOf(HasSubstr("a.h5'"), HasSubstr("row 33")));
    } else {
      EXPECT_EQ(error, "");
    }
  }
}

TEST_F(SharedRows, WhatCannotBeOpenedFailsThoseWhoStart) {
  const Place at{test_launch().world().size(), test_launch().world().rank(), 1, 1, 0};
  const auto across = this->across(at);
  SharedStream shared(*across, [](int64_t) -> std::unique_ptr<BatchStream> {
    fail_agreed(ExitCode::bad_data, "no shards in 'x'");
  });
  if (at.group != 1) {
    shared.start(0);
    EXPECT_EQ(test::error_of([&] { shared.next(); }).line(), "no shards in 'x'");
  }
  shared.finish();
}

}  // namespace
}  // namespace megadict
