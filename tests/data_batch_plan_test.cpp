#include "data/batch_plan.h"

#include <gmock/gmock.h>
// RapidCheck's GoogleTest support needs gtest first.
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "support/shards.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::error_of;
using test::TempFolder;
using test::write_shard;
using test::write_shards;
using testing::HasSubstr;

using Rows = std::vector<int64_t>;

Rows step_rows(const BatchPlan& plan, int64_t step) {
  Rows all;
  for (int64_t m = 0; m < plan.micro_batches(step); ++m)
    for (int64_t row : plan.rows(step, m)) all.push_back(row);
  return all;
}

Rows epoch_rows(const BatchPlan& plan, int64_t first_step, int64_t steps) {
  Rows all;
  for (int64_t s = first_step; s < first_step + steps; ++s)
    for (int64_t row : step_rows(plan, s)) all.push_back(row);
  std::sort(all.begin(), all.end());
  return all;
}

Rows iota(int64_t count) {
  Rows rows(static_cast<size_t>(count));
  std::iota(rows.begin(), rows.end(), int64_t{0});
  return rows;
}

// Unequal shards with ragged last chunks: 57 rows.
class Plan : public testing::Test {
 protected:
  Plan() {
    write_shards(folder_.path(), {20, 1, 7, 29});
    index_ = ShardIndex::open(folder_.path());
  }
  DataConfig config(int64_t batch, const std::string& last = "drop") {
    DataConfig made;
    made.batch_size = batch;
    made.last_batch = last;
    made.shuffle_buffer = 15;
    return made;
  }
  TempFolder folder_;
  ShardIndex index_;
};

TEST_F(Plan, KeepUsesEveryRowOnceAnEpoch) {
  DataConfig keep = config(8, "keep");
  keep.tokens = 3 * 57;
  const BatchPlan plan(index_, keep, 1);
  EXPECT_EQ(plan.rows_per_epoch(), 57);
  EXPECT_EQ(plan.steps(), 3 * 8);
  EXPECT_EQ(plan.batch_rows(0), 8);
  EXPECT_EQ(plan.batch_rows(7), 1);
  EXPECT_EQ(plan.batch_rows(8), 8);
  EXPECT_EQ(plan.tokens_at(8), 57);
  EXPECT_EQ(plan.tokens_at(9), 65);
  EXPECT_EQ(plan.tokens_at(24), 171);
  for (int64_t epoch : {0, 1, 2}) EXPECT_EQ(epoch_rows(plan, epoch * 8, 8), iota(57));
}

TEST_F(Plan, DropEndsAnEpochWithItsLastWholeBatch) {
  DataConfig drop = config(8);
  drop.tokens = 1000;
  const BatchPlan plan(index_, drop, 1);
  EXPECT_EQ(plan.rows_per_epoch(), 56);
  EXPECT_EQ(plan.steps(), 1000 / 8);
  EXPECT_EQ(plan.tokens_at(7), 56);
  std::set<int64_t> dropped;
  for (int64_t epoch = 0; epoch < 10; ++epoch) {
    const Rows rows = epoch_rows(plan, epoch * 7, 7);
    EXPECT_EQ(std::set<int64_t>(rows.begin(), rows.end()).size(), 56u);
    for (int64_t row = 0; row < 57; ++row)
      if (!std::binary_search(rows.begin(), rows.end(), row)) dropped.insert(row);
  }
  EXPECT_GT(dropped.size(), 3u);  // another row each epoch
}

TEST_F(Plan, StepsAreTheWholeBatchesThatFitAndAtLeastOne) {
  DataConfig drop = config(8), keep = config(8, "keep");
  EXPECT_EQ(BatchPlan(index_, drop, 1).steps(), 7);
  EXPECT_EQ(BatchPlan(index_, keep, 1).steps(), 8);
  const struct {
    int64_t tokens, steps_drop, steps_keep;
  } cases[] = {{1, 1, 1},  {8, 1, 1},  {15, 1, 1}, {16, 2, 2},    {56, 7, 7},
               {57, 7, 8}, {64, 8, 8}, {65, 8, 9}, {112, 14, 14}, {114, 14, 16}};
  for (const auto& c : cases) {
    drop.tokens = keep.tokens = c.tokens;
    EXPECT_EQ(BatchPlan(index_, drop, 1).steps(), c.steps_drop) << c.tokens;
    EXPECT_EQ(BatchPlan(index_, keep, 1).steps(), c.steps_keep) << c.tokens;
  }
}

TEST_F(Plan, EpochsAndSeedsDiffer) {
  DataConfig two = config(19);
  two.tokens = 57 * 2;
  const BatchPlan plan(index_, two, 1), other(index_, two, 2);
  EXPECT_NE(plan.rows(0, 0), plan.rows(3, 0));
  EXPECT_NE(plan.rows(0, 0), other.rows(0, 0));
  EXPECT_EQ(plan.rows(4, 0), BatchPlan(index_, two, 1).rows(4, 0));
}

TEST_F(Plan, RowsAreSortedByChunkPositionAndRow) {
  const BatchPlan plan(index_, config(20), 3);
  const auto [first, last] = plan.windows(0, 0);
  EXPECT_EQ(first, (WindowId{0, 0}));
  EXPECT_GE(last, (WindowId{0, 1}));  // 20 rows do not fit into a window of 15 to 17
  std::vector<int32_t> order;
  for (WindowId w = first; w <= last; w = plan.next(w))
    for (int32_t chunk : plan.window_chunks(w)) order.push_back(chunk);
  std::vector<std::pair<int64_t, int64_t>> placed;
  for (int64_t row : plan.rows(0, 0)) {
    const auto at = std::find_if(order.begin(), order.end(), [&](int32_t chunk) {
      return index_.chunks()[static_cast<size_t>(chunk)].rows.contains(row);
    });
    ASSERT_NE(at, order.end());
    placed.push_back({at - order.begin(), row});
  }
  EXPECT_TRUE(std::is_sorted(placed.begin(), placed.end()));
}

TEST_F(Plan, WindowsTakeWholeChunksUntilTheyHaveEnoughRows) {
  const BatchPlan plan(index_, config(8), 5);
  std::set<int32_t> seen;
  for (WindowId w{0, 0}; w.epoch == 0; w = plan.next(w)) {
    int64_t rows = 0, before_last = 0;
    for (int32_t chunk : plan.window_chunks(w)) {
      EXPECT_TRUE(seen.insert(chunk).second);
      before_last = rows;
      rows += index_.chunks()[static_cast<size_t>(chunk)].rows.size();
    }
    EXPECT_LT(before_last, 15);
    if (plan.next(w).epoch == 0) {
      EXPECT_GE(rows, 15);
    }
  }
  EXPECT_EQ(seen.size(), index_.chunks().size());
}

TEST_F(Plan, MicroBatchesCutTheStep) {
  DataConfig whole = config(20, "keep"), cut = whole;
  cut.micro_batch_size = 7;
  const BatchPlan a(index_, whole, 1), b(index_, cut, 1);
  EXPECT_EQ(b.micro_batches(0), 3);
  EXPECT_EQ(b.micro_batches(2), 3);  // 17 rows: 7, 7, 3
  EXPECT_EQ(b.rows(2, 2).size(), 3u);
  for (int64_t step = 0; step < a.steps(); ++step) {
    Rows one = step_rows(a, step), other = step_rows(b, step);
    std::sort(one.begin(), one.end());
    std::sort(other.begin(), other.end());
    EXPECT_EQ(one, other);
  }
}

// Trap 18: a document's rows are spread over batches.
TEST(PlanShuffle, SpreadsNeighbouringRowsOverBatches) {
  const TempFolder folder;
  test::write_shards(folder.path(), {2000, 2000}, {.chunk_rows = 50});
  DataConfig config;
  config.batch_size = 100;
  config.shuffle_buffer = 1000;
  const BatchPlan plan(ShardIndex::open(folder.path()), config, 7);
  std::vector<int64_t> batch_of(4000);
  for (int64_t step = 0; step < plan.steps(); ++step)
    for (int64_t row : plan.rows(step, 0)) batch_of[static_cast<size_t>(row)] = step;
  for (int64_t document = 0; document < 80; ++document) {  // 50 rows each
    const auto begin = batch_of.begin() + document * 50;
    EXPECT_GE(std::set<int64_t>(begin, begin + 50).size(), 8u);
  }
}

TEST_F(Plan, SurvivorsAreTheOnlyRows) {
  Rows survivors;
  for (int64_t row = 0; row < 57; ++row)
    if (row % 3 != 1 && row != 20) survivors.push_back(row);
  DataConfig keep = config(8, "keep");
  keep.tokens = 3 * static_cast<int64_t>(survivors.size());
  const BatchPlan plan(index_, keep, 1, survivors);
  const auto count = static_cast<int64_t>(survivors.size());
  EXPECT_EQ(plan.rows_per_epoch(), count);
  EXPECT_EQ(epoch_rows(plan, 0, ceil_div(count, 8)), survivors);
  EXPECT_EQ(epoch_rows(plan, ceil_div(count, 8), ceil_div(count, 8)), survivors);
}

TEST_F(Plan, FewSurvivorsInFewChunks) {
  const BatchPlan plan(index_, config(2), 1, {3, 30, 31, 56});
  EXPECT_EQ(plan.steps(), 2);
  EXPECT_EQ(epoch_rows(plan, 0, 2), (Rows{3, 30, 31, 56}));
}

TEST_F(Plan, SampleIsTheStartOfTheFirstEpoch) {
  const BatchPlan plan(index_, config(8), 1);
  const Rows sample = plan.sample(20);
  EXPECT_EQ(sample.size(), 20u);
  EXPECT_EQ(sample, BatchPlan(index_, config(19, "keep"), 1).sample(20));
  Rows first(sample.begin(), sample.begin() + 8), batch = plan.rows(0, 0);
  std::sort(first.begin(), first.end());
  std::sort(batch.begin(), batch.end());
  EXPECT_EQ(first, batch);
  Rows all = plan.sample(1000000);
  std::sort(all.begin(), all.end());
  EXPECT_EQ(all, iota(57));
}

TEST_F(Plan, RefusesImpossibleSizes) {
  const auto refused = [&](auto change, const char* text) {
    DataConfig bad = config(8);
    change(bad);
    const Error error = error_of([&] { BatchPlan(index_, bad, 1); });
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_TRUE(error.agreed());
    EXPECT_THAT(error.line(), HasSubstr(text));
  };
  refused([](auto& c) { c.batch_size = 0; }, "data.batch_size is 0. hint: 1 or more");
  refused([](auto& c) { c.micro_batch_size = -1; }, "data.micro_batch_size is -1");
  refused([](auto& c) { c.shuffle_buffer = 0; }, "data.shuffle_buffer is 0");
  refused([](auto& c) { c.tokens = -5; }, "data.tokens is -5");
  refused([](auto& c) { c.last_batch = "fill"; }, "data.last_batch is 'fill'. hint: drop or keep");
  refused([](auto& c) { c.batch_size = 58; }, "data.batch_size is 58, the data set has 57 rows");
  const BatchPlan plan(index_, config(58, "keep"), 1);
  EXPECT_EQ(plan.steps(), 1);
  EXPECT_EQ(plan.batch_rows(0), 57);
  EXPECT_THAT(error_of([&] { plan.rows(1, 0); }).line(), HasSubstr("step 1 of a plan of 1"));
}

TEST(RowPart, SlotsCoverEveryRowOnce) {
  EXPECT_EQ(row_part(10, 3, 2, 0, 1).owned, (Range{2, 4}));
  EXPECT_EQ(row_part(10, 3, 2, 2, 1).owned, (Range{2, 3}));
  EXPECT_EQ(row_part(10, 3, 2, 1, 0).row_range, (Range{4, 7}));
  EXPECT_EQ(row_part(1, 1, 6, 0, 5).owned, (Range{1, 1}));  // padding only
}

// Any batch, micro-batch, window, token count and mesh: the parts of all ranks are the micro-batch,
// each row once, in order; and the plan does not know the mesh.
RC_GTEST_PROP(PlanProperty, PartsOfAllRanksAreTheMicroBatch, ()) {
  static const TempFolder folder;
  static const ShardIndex index = [] {
    test::write_shards(folder.path(), {20, 1, 7, 29});
    return ShardIndex::open(folder.path());
  }();
  DataConfig config;
  config.batch_size = *rc::gen::inRange(1, 57);
  config.micro_batch_size = *rc::gen::inRange(0, 60);
  config.shuffle_buffer = *rc::gen::inRange(1, 80);
  config.tokens = *rc::gen::inRange(0, 200);
  config.last_batch = *rc::gen::element(std::string("keep"), std::string("drop"));
  const int ranks = *rc::gen::element(1, 2, 3, 4, 6, 7);
  const BatchPlan plan(index, config, static_cast<uint64_t>(*rc::gen::inRange(0, 1000)));
  const auto step = *rc::gen::inRange<int64_t>(0, plan.steps());
  const auto micro = *rc::gen::inRange<int64_t>(0, plan.micro_batches(step));
  const Rows rows = plan.rows(step, micro);
  RC_ASSERT(std::set<int64_t>(rows.begin(), rows.end()).size() == rows.size());
  for (int data = 1; data <= ranks; ++data) {
    if (ranks % data != 0) continue;
    const int feature = ranks / data;
    Rows together;
    int64_t slot = -1;
    for (int rank = 0; rank < ranks; ++rank) {
      const RowPart part = row_part(static_cast<int64_t>(rows.size()), data, feature,
                                    rank / feature, rank % feature);
      RC_ASSERT(slot == -1 || slot == part.slot);
      slot = part.slot;
      RC_ASSERT(part.owned.size() <= part.slot && part.padded == slot * feature);
      for (int64_t i = part.owned.begin; i < part.owned.end; ++i)
        together.push_back(rows[static_cast<size_t>(part.row_range.begin + i)]);
    }
    RC_ASSERT(together == rows);
  }
  RC_ASSERT(plan.tokens_at(plan.steps()) ==
            plan.tokens_at(plan.steps() - 1) + plan.batch_rows(plan.steps() - 1));
}

}  // namespace
}  // namespace megadict
