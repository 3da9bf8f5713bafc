#include "data/batch_stream.h"

#include <gmock/gmock.h>

#include <chrono>
#include <cstring>
#include <map>
#include <thread>

#include "io/file.h"
#include "io/hdf5_file.h"
#include "support/shards.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::error_of;
using test::TempFolder;
using test::write_shard;
using test::write_shards;
using testing::AllOf;
using testing::HasSubstr;

class Stream : public testing::TestWithParam<DType> {
 protected:
  Stream() {
    write_shards(folder_.path(), {20, 1, 7, 29, 60}, {.dtype = GetParam()});
    index_ = ShardIndex::open(folder_.path());
    config_.batch_size = 10;
    config_.micro_batch_size = 4;
    config_.shuffle_buffer = 25;
    config_.last_batch = "keep";
    config_.tokens = 3 * index_.rows();
  }
  TempFolder folder_;
  ShardIndex index_;
  DataConfig config_;
};

// Traps 18 and 19: unequal shards, rows that do not divide, every mesh: all ranks see the same
// steps, and together exactly the plan's rows with their true content.
TEST_P(Stream, RanksOfEveryMeshTogetherReadThePlan) {
  const BatchPlan plan(index_, config_, 11);
  for (int ranks : {1, 2, 3, 4, 6})
    for (int data = 1; data <= ranks; ++data) {
      if (ranks % data != 0) continue;
      const int feature = ranks / data;
      std::map<std::pair<int64_t, int64_t>, std::vector<int64_t>> seen;
      for (int rank = 0; rank < ranks; ++rank) {
        BatchStream stream(index_, plan, data, feature, rank / feature, rank % feature, 0, 3);
        for (int64_t step = 0; step < plan.steps(); ++step)
          for (int64_t micro = 0; micro < plan.micro_batches(step); ++micro) {
            const MicroBatch batch = stream.next();
            ASSERT_EQ(batch.step, step);
            ASSERT_EQ(batch.micro, micro);
            ASSERT_EQ(batch.last_of_step, micro + 1 == plan.micro_batches(step));
            ASSERT_EQ(batch.batch_rows, plan.batch_rows(step));
            ASSERT_EQ(batch.dtype, GetParam());
            const size_t row_size = 4 * size_of(batch.dtype);
            ASSERT_EQ(batch.data.size(), static_cast<size_t>(batch.part.slot) * row_size);
            for (size_t i = 0; i < static_cast<size_t>(batch.part.slot); ++i) {
              const std::vector<std::byte> row(batch.data.begin() + i * row_size,
                                               batch.data.begin() + (i + 1) * row_size);
              if (i < batch.row_ids.size()) {
                ASSERT_EQ(row, test::row_bytes(batch.row_ids[i], 4, GetParam()));
              } else {
                ASSERT_EQ(row, std::vector<std::byte>(row_size));
              }
            }
            auto& rows = seen[{step, micro}];
            rows.insert(rows.end(), batch.row_ids.begin(), batch.row_ids.end());
          }
        EXPECT_THAT(error_of([&] { stream.next(); }).line(), HasSubstr("past its last step"));
      }
      for (const auto& [at, rows] : seen) ASSERT_EQ(rows, plan.rows(at.first, at.second));
    }
}

// Trap 17: any step is a place to resume from.
TEST_P(Stream, ResumingAtAnyStepGivesTheSameRows) {
  const BatchPlan plan(index_, config_, 5);
  std::vector<MicroBatch> whole;
  {
    BatchStream stream(index_, plan, 1, 2, 0, 1, 0, 2);
    for (int64_t step = 0; step < plan.steps(); ++step)
      for (int64_t micro = 0; micro < plan.micro_batches(step); ++micro)
        whole.push_back(stream.next());
  }
  for (int64_t first = 0; first < plan.steps(); ++first) {
    const BatchPlan again(ShardIndex::open(folder_.path()), config_, 5);
    BatchStream stream(index_, again, 1, 2, 0, 1, first, 2);
    for (const MicroBatch& expected : whole) {
      if (expected.step < first) continue;
      const MicroBatch batch = stream.next();
      ASSERT_EQ(batch.row_ids, expected.row_ids);
      ASSERT_EQ(batch.data, expected.data);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Stream, testing::Values(DType::f32, DType::f16, DType::bf16),
                         [](const auto& type) { return std::string(name_of(type.param)); });

class StreamErrors : public testing::Test {
 protected:
  DataConfig config() {
    DataConfig made;
    made.batch_size = 10;
    made.shuffle_buffer = 10;
    return made;
  }
  // Reads until the stream throws; the number of batches before that goes to `batches`.
  Error read_all(const ShardIndex& index, int64_t& batches) {
    const BatchPlan plan(index, config(), 1);
    BatchStream stream(index, plan, 1, 1, 0, 0, 0, 2);
    return error_of([&] {
      for (batches = 0; batches < plan.steps(); ++batches) stream.next();
    });
  }
  TempFolder folder_;
};

TEST_F(StreamErrors, CorruptChunkIsThrownByNextAtItsStep) {
  write_shards(folder_.path(), {40, 40}, {.chunk_rows = 10});
  const ShardIndex index = ShardIndex::open(folder_.path());
  int64_t offset = 0;
  { offset = Hdf5File::open(folder_ / "b.h5").chunk_offset("activations", 20); }
  std::string bytes = read_file(folder_ / "b.h5");
  bytes[static_cast<size_t>(offset)] ^= 0x10;
  write_file_atomic(folder_ / "b.h5", bytes);
  const BatchPlan plan(index, config(), 1);
  int64_t due = 0;
  while (!Range{60, 70}.contains(plan.rows(due, 0)[0])) ++due;
  int64_t batches = 0;
  const Error error = read_all(index, batches);
  EXPECT_EQ(batches, due);
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.line(), AllOf(HasSubstr("b.h5'"), HasSubstr("chunk 2 (rows 20 to 30)")));
}

TEST_F(StreamErrors, RowThatIsNotFiniteIsThrownByNext) {
  test::write_shard_with_nan(folder_.path(), 40);
  int64_t batches = 0;
  const Error error = read_all(ShardIndex::open(folder_.path()), batches);
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.line(), AllOf(HasSubstr("a.h5'"), HasSubstr("row 33")));
}

TEST_F(StreamErrors, FileRemovedUnderway) {
  write_shards(folder_.path(), {40});
  const ShardIndex index = ShardIndex::open(folder_.path());
  remove_file(folder_ / "a.h5");
  int64_t batches = 0;
  const Error error = read_all(index, batches);
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.line(), HasSubstr("a.h5': No such file"));
}

// Batches keep their content when the stream that made them has gone, and no two share memory.
TEST_F(StreamErrors, BatchesOutliveTheStream) {
  write_shards(folder_.path(), {100});
  const ShardIndex index = ShardIndex::open(folder_.path());
  const BatchPlan plan(index, config(), 1);
  std::vector<MicroBatch> kept;
  {
    BatchStream stream(index, plan, 1, 1, 0, 0, 0, 2);
    for (int64_t step = 0; step < plan.steps(); ++step) kept.push_back(stream.next());
  }
  for (const MicroBatch& batch : kept)
    for (size_t i = 0; i < batch.row_ids.size(); ++i) {
      const std::vector<std::byte> want = test::row_bytes(batch.row_ids[i], 4, DType::f32);
      EXPECT_EQ(std::memcmp(batch.data.data() + i * want.size(), want.data(), want.size()), 0);
    }
}

// The training loop samples, evaluates and asks the plan while the reader thread works.
TEST_F(StreamErrors, OtherThreadsMayReadTheSameDataMeanwhile) {
  write_shards(folder_.path(), {100, 100});
  const ShardIndex index = ShardIndex::open(folder_.path());
  const BatchPlan plan(index, config(), 1);
  BatchStream stream(index, plan, 1, 1, 0, 0, 0, 2);
  for (int64_t step = 0; step < plan.steps(); ++step) {
    std::vector<float> rows(20 * 4);
    read_rows(index, plan.sample(20), rows.data());
    EXPECT_EQ(stream.next().row_ids, plan.rows(step, 0));
  }
}

TEST_F(StreamErrors, LeavingEarlyDoesNotHang) {
  write_shards(folder_.path(), {100});
  const ShardIndex index = ShardIndex::open(folder_.path());
  const BatchPlan plan(index, config(), 1);
  for (int reads : {0, 1, 3}) {
    BatchStream stream(index, plan, 1, 1, 0, 0, 0, 2);
    for (int i = 0; i < reads; ++i) stream.next();
  }
}

TEST_F(StreamErrors, CountsItsWaiting) {
  write_shards(folder_.path(), {100});
  const ShardIndex index = ShardIndex::open(folder_.path());
  const BatchPlan plan(index, config(), 1);
  BatchStream stream(index, plan, 1, 1, 0, 0, 0, 2);
  stream.next();
  EXPECT_GE(stream.wait_seconds(), 0.0);
  EXPECT_LT(stream.wait_seconds(), 60.0);
}

}  // namespace
}  // namespace megadict
