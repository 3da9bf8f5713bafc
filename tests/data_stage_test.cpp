#include "data/stage.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>

#include "data/row_reader.h"
#include "support/shards.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::error_of;
using test::TempFolder;
using test::write_shards;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

namespace fs = std::filesystem;

void copy_all(ShardStage& stage) {
  while (stage.bytes_missing() > 0) stage.copy(0.01);
}

std::vector<float> rows_of(const ShardIndex& index) {
  std::vector<float> rows(static_cast<size_t>(index.rows() * index.width()));
  RowReader(index).read(Range{0, index.rows()}, rows.data());
  return rows;
}

TEST(Stage, CopiesAreReadInsteadOfTheShards) {
  const TempFolder data, disk;
  write_shards(data.path(), {10, 1, 7});
  const ShardIndex index = ShardIndex::open(data.path());
  const std::vector<float> rows = rows_of(index);
  ShardStage stage(index, {0, 1, 2}, disk.path());
  EXPECT_EQ(stage.bytes_missing(),
            file_size(data / "a.h5") + file_size(data / "b.h5") + file_size(data / "c.h5"));
  copy_all(stage);
  const ShardIndex staged = staged_index(index, {0, 1, 2}, disk.path());
  EXPECT_EQ(staged.fingerprint(), index.fingerprint());
  for (const char* name : {"a.h5", "b.h5", "c.h5"}) fs::remove(data / name);
  EXPECT_EQ(rows_of(staged), rows);
}

TEST(Stage, ShardsThatAreNotStagedStayWhereTheyAre) {
  const TempFolder data, disk;
  write_shards(data.path(), {10, 5});
  const ShardIndex index = ShardIndex::open(data.path());
  ShardStage stage(index, {1}, disk.path());
  copy_all(stage);
  const ShardIndex staged = staged_index(index, {1}, disk.path());
  EXPECT_EQ(staged.shards()[0].path, index.shards()[0].path);
  EXPECT_EQ(staged.shards()[1].path, staged_path(index, 1, disk.path()));
  EXPECT_EQ(rows_of(staged), rows_of(index));
}

TEST(Stage, WhatIsThereIsNotCopiedAgain) {
  const TempFolder data, disk;
  write_shards(data.path(), {10, 5});
  const ShardIndex index = ShardIndex::open(data.path());
  {
    ShardStage stage(index, {0, 1}, disk.path());
    copy_all(stage);
  }
  const auto written = fs::last_write_time(staged_path(index, 0, disk.path()));
  EXPECT_EQ(ShardStage(index, {0, 1}, disk.path()).bytes_missing(), 0);
  fs::resize_file(staged_path(index, 1, disk.path()), 100);  // not whole
  ShardStage again(index, {0, 1}, disk.path());
  EXPECT_EQ(again.bytes_missing(), file_size(data / "b.h5"));
  copy_all(again);
  EXPECT_EQ(rows_of(staged_index(index, {0, 1}, disk.path())), rows_of(index));
  EXPECT_EQ(fs::last_write_time(staged_path(index, 0, disk.path())), written);
}

TEST(Stage, ACopyOfAnotherShardIsReplaced) {
  const TempFolder data, other, disk;
  write_shards(data.path(), {10});
  write_shards(other.path(), {10}, {.first_row = 100});
  const ShardIndex index = ShardIndex::open(data.path());
  fs::create_directories(parent_folder(staged_path(index, 0, disk.path())));
  fs::copy_file(other / "a.h5", staged_path(index, 0, disk.path()));
  ShardStage stage(index, {0}, disk.path());
  EXPECT_GT(stage.bytes_missing(), 0);
  copy_all(stage);
  EXPECT_EQ(rows_of(staged_index(index, {0}, disk.path())), rows_of(index));
}

TEST(Stage, WhatAKilledCopyLeftIsRemoved) {
  const TempFolder data, disk;
  write_shards(data.path(), {10});
  const ShardIndex index = ShardIndex::open(data.path());
  const std::string left = staged_path(index, 0, disk.path()) + ".tmp-1";
  fs::create_directories(parent_folder(left));
  std::ofstream(left) << "half";
  ShardStage stage(index, {0}, disk.path());
  copy_all(stage);
  EXPECT_FALSE(file_exists(left));
  EXPECT_THAT(glob_files(disk / "*/*/*"), ElementsAre(staged_path(index, 0, disk.path())));
}

TEST(Stage, AnotherJobThatCopiesTheSameIsWaitedFor) {
  const TempFolder data, disk;
  write_shards(data.path(), {10});
  const ShardIndex index = ShardIndex::open(data.path());
  ShardStage stage(index, {0}, disk.path());
  {
    FolderLock other;
    ASSERT_TRUE(other.take(disk / index.fingerprint()));
    stage.copy(0.01);
    EXPECT_GT(stage.bytes_missing(), 0);
    EXPECT_THAT(glob_files(disk / "*/*/*"), IsEmpty());
  }
  copy_all(stage);
  EXPECT_TRUE(file_exists(staged_path(index, 0, disk.path())));
}

TEST(Stage, ADiskWithoutRoomIsRefusedBeforeAnythingIsCopied) {
  const TempFolder data, disk;
  write_shards(data.path(), {10});
  const ShardIndex index = ShardIndex::open(data.path());
  fs::resize_file(data / "a.h5", uintmax_t{8} << 40);  // a hole: takes no room itself
  EXPECT_THAT(error_of([&] { ShardStage(index, {0}, disk.path()); }).line(),
              AllOf(HasSubstr("data.stage_dir '" + disk.path()), HasSubstr("GiB free"),
                    HasSubstr("need 8192.00 GiB")));
  EXPECT_THAT(glob_files(disk / "*/*"), IsEmpty());
}

TEST(Stage, AShardThatChangedSinceIsRefused) {
  const TempFolder data, disk;
  write_shards(data.path(), {10});
  const ShardIndex index = ShardIndex::open(data.path());
  write_shards(data.path(), {10}, {.first_row = 100});
  ShardStage stage(index, {0}, disk.path());
  EXPECT_THAT(error_of([&] { copy_all(stage); }).line(),
              AllOf(HasSubstr("which is another shard now"), HasSubstr("a.h5")));
}

TEST(Stage, TheShardsOfAShortRunAreNotAll) {
  const TempFolder data;
  write_shards(data.path(), {12, 12, 12, 12, 12, 12, 12, 12});
  const ShardIndex index = ShardIndex::open(data.path());
  DataConfig config;
  config.batch_size = 4;
  config.shuffle_buffer = 6;
  config.tokens = 4;
  const std::vector<int32_t> few = shards_needed(index, BatchPlan(index, config, 0));
  EXPECT_LE(few.size(), 2u);
  for (int64_t row : BatchPlan(index, config, 0).rows(0, 0))
    EXPECT_THAT(few, testing::Contains(static_cast<int32_t>(row / 12)));
  config.tokens = 0;
  EXPECT_EQ(shards_needed(index, BatchPlan(index, config, 0)).size(), 8u);
  config.tokens = 1000;
  EXPECT_EQ(shards_needed(index, BatchPlan(index, config, 0)).size(), 8u);
}

}  // namespace
}  // namespace megadict
