#include "train/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "model/saved.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using ::testing::ElementsAre;

TEST(Milestones, ArePowersOfTheRatio) {
  EXPECT_EQ(milestone_of(1, 2), 0);
  EXPECT_EQ(milestone_of(7, 2), 2);
  EXPECT_EQ(milestone_of(8, 2), 3);
  EXPECT_EQ(milestone_of(1000, 10), 3);
  EXPECT_EQ(milestone_of(999, 10), 2);
  EXPECT_EQ(milestone_of(1, 1000), 0);
  for (int64_t step = 1; step < 100; ++step)
    EXPECT_LE(milestone_of(step, 1.1), milestone_of(step + 1, 1.1)) << step;
}

// Folders are all that pruning looks at.
class Pruning : public ::testing::Test {
 protected:
  void save(int64_t step) const {
    const std::string name = std::to_string(step);
    std::filesystem::create_directories(
        run_ / ("checkpoints/step_" + std::string(9 - name.size(), '0') + name));
  }
  // Every `every` steps up to `last`, each followed by a pruning as in a run.
  std::vector<int64_t> left(int64_t first, int64_t last, int64_t every,
                            const CheckpointConfig& config) const {
    for (int64_t step = first; step <= last; step += every) {
      save(step);
      prune_checkpoints(run_.path(), config);
    }
    std::vector<int64_t> steps;
    for (const SavedStep& saved : saved_steps(run_.path())) steps.push_back(saved.step);
    return steps;
  }
  test::TempFolder run_;
};

TEST_F(Pruning, WithoutARatioTheNewestStay) {
  EXPECT_THAT(left(10, 100, 10, {.keep = 3}), ElementsAre(80, 90, 100));
}

TEST_F(Pruning, ARatioKeepsTheFirstOfEveryFactorBesideTheNewest) {
  EXPECT_THAT(left(10, 300, 10, {.keep = 2, .keep_ratio = 2}),
              ElementsAre(10, 20, 40, 70, 130, 260, 290, 300));
}

TEST_F(Pruning, ARunThatGoesOnKeepsWhatItKept) {
  left(10, 150, 10, {.keep = 1, .keep_ratio = 2});
  EXPECT_THAT(left(160, 300, 10, {.keep = 1, .keep_ratio = 2}),
              ElementsAre(10, 20, 40, 70, 130, 260, 300));
}

TEST_F(Pruning, ARatioBelowTheDistanceKeepsAll) {
  EXPECT_THAT(left(10, 50, 10, {.keep = 1, .keep_ratio = 1.1}), ElementsAre(10, 20, 30, 40, 50));
}

TEST_F(Pruning, ARatioThatIsNewLooksAtWhatIsLeft) {
  left(10, 100, 10, {.keep = 4});
  EXPECT_THAT(left(110, 140, 10, {.keep = 1, .keep_ratio = 2}), ElementsAre(70, 130, 140));
}

}  // namespace
}  // namespace megadict
