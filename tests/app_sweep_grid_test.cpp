#include "app/sweep_grid.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "app/sweep.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class SweepGrid : public ::testing::Test {
 protected:
  std::string file(const std::string& text) const {
    const std::string path = folder_ / "grid.ini";
    std::ofstream(path) << text;
    return path;
  }
  std::vector<SweepPoint> points(const std::string& text) const {
    return points_of(read_grid(file(text)), base_);
  }
  std::vector<std::string> names(const std::string& text) const {
    std::vector<std::string> all;
    for (const SweepPoint& point : points(text)) all.push_back(point.name);
    return all;
  }
  Error refused(const std::string& text) const {
    return test::error_of([&] { points(text); });
  }

  test::TempFolder folder_;
  Settings base_;
};

TEST_F(SweepGrid, ListsMultiplyAndTheFirstVariesSlowest) {
  EXPECT_THAT(names("[model]\nk = 16, 32\n[optim]\nlr = 1e-4,3e-4\nbeta1 = 0.5\n"),
              ElementsAre("model.k=16_optim.lr=0.0001", "model.k=16_optim.lr=0.0003",
                          "model.k=32_optim.lr=0.0001", "model.k=32_optim.lr=0.0003"));
  const auto all = points("[model]\nk = 16, 32\n[optim]\nbeta1 = 0.5\n");
  EXPECT_EQ(all[1].settings.config.model.k, 32);
  EXPECT_EQ(all[1].settings.config.optim.beta1, 0.5);
  EXPECT_THAT(source_of(all[1].settings, "model.k"), HasSubstr("grid.ini:2"));
}

TEST_F(SweepGrid, ListedPointsComeWithEveryValueOfTheAxes) {
  const std::string listed = "[points]\nsmall = model.k=4 optim.lr=1e-3\nlarge = model.k=64\n";
  EXPECT_THAT(names(listed), ElementsAre("small", "large"));
  EXPECT_THAT(
      names(listed + "[run]\nseed = 1, 2\n"),
      ElementsAre("small_run.seed=1", "small_run.seed=2", "large_run.seed=1", "large_run.seed=2"));
}

TEST_F(SweepGrid, QuotesKeepCommasTogether) {
  const auto all = points("[dead]\nresample_steps = never, \"100,200\"\n");
  ASSERT_EQ(all.size(), 2U);
  EXPECT_EQ(all[1].settings.config.dead.resample_steps, "100,200");
  EXPECT_EQ(points("[dead]\nresample_steps = \"100,200\"\n[run]\nseed = 1, 2\n").size(), 2U);
}

TEST_F(SweepGrid, SetReplacesWhatTheFileSays) {
  Grid grid = read_grid(file("[model]\nk = 16, 32\n"));
  add_to_grid(grid, "model.k=8, 9,10");
  add_to_grid(grid, "run.seed=5");
  const auto all = points_of(grid, base_);
  ASSERT_EQ(all.size(), 3U);
  EXPECT_EQ(all[2].name, "model.k=10");
  EXPECT_EQ(all[2].settings.config.run.seed, 5U);
  const Error twice = test::error_of([&] { add_to_grid(grid, "run.seed=6"); });
  EXPECT_THAT(twice.what(), HasSubstr("run.seed is given twice"));
  EXPECT_THAT(test::error_of([&] { add_to_grid(grid, "model.k"); }).line(), HasSubstr("--set"));
}

TEST_F(SweepGrid, TheCommandLineWinsOverCommonValuesAndNotOverAxes) {
  base_.config.model.k = 7;
  base_.sources["model.k"] = "command line";
  const auto all = points("[model]\nk = 9\n[run]\nseed = 1, 2\n");
  EXPECT_EQ(all[0].settings.config.model.k, 7);
  EXPECT_THAT(refused("[model]\nk = 9, 10\n").what(),
              HasSubstr("model.k is varied here and given on the command line"));
}

TEST_F(SweepGrid, NamesAreTheSameWhateverElseTheGridHolds) {
  EXPECT_EQ(names("[model]\nk = 16, 32, 64\n")[1], names("[model]\nk = 32, 128\n")[0]);
  // 1e-3 and 0.001 are one value.
  EXPECT_EQ(names("[optim]\nlr = 1e-3, 1\n")[0], names("[optim]\nlr = 0.001, 1\n")[0]);
  const std::string path = names("[data]\npath = a/b, a-b\n")[0];
  EXPECT_EQ(path.find('/'), std::string::npos);
  EXPECT_NE(path, names("[data]\npath = a/b, a-b\n")[1]);
}

TEST_F(SweepGrid, RefusesWithPlaceAndReason) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "varies nothing"},
      {"[model]\nk = 16\n", "varies nothing"},
      {"[model]\nk = 16,,32\n", "grid.ini:2: model.k = '16,,32': a value is empty"},
      {"[model]\nk = 16,\n", "a value is empty"},
      {"[model]\nq = 16, 32\n", "grid.ini:2: unknown name 'model.q'"},
      {"[model]\nk = 16, x\n", "model.k = 'x'"},
      {"[model]\nk = 16, 0\n", "model.k = '0'"},
      {"[model]\nk = 16, 32, 16\n", "holds a point twice: model.k=16"},
      {"[optim]\nlr = 1e-3, 0.001\n", "holds a point twice"},
      {"[points]\na = model.k=4\nb = model.k=4\n", "holds a point twice: b is a"},
      {"[points]\na/b = model.k=4\n", "'a/b' cannot be a point's name"},
      {"[points]\na = model.k\n", "'model.k' is not name=value"},
      {"[points]\na = model.k=4 model.k=5\n", "model.k is set twice"},
      {"[points]\na = model.k=4\n[model]\nk = 5, 6\n", "model.k is an axis, too"},
      {"[run]\ndir = a, b\n", "run.dir cannot be set"},
      {"[model]\nk = 16, 99\nn_latents = 64\n", "point model.k=99: model.k = 99 is more than"},
  };
  for (const auto& [text, reason] : cases) {
    const Error error = refused(text);
    EXPECT_EQ(error.code(), ExitCode::usage) << text;
    EXPECT_THAT(error.what(), HasSubstr(reason)) << text;
  }
}

TEST(Groups, AsManyAsPointsAndMeshAllow) {
  const auto groups = [](int ranks, const MeshConfig& mesh, size_t count) {
    std::vector<SweepPoint> points(count);
    for (SweepPoint& point : points) point.settings.config.mesh = mesh;
    return groups_for(ranks, points);
  };
  EXPECT_EQ(groups(4, {}, 12), 4);
  EXPECT_EQ(groups(8, {}, 3), 2);
  EXPECT_EQ(groups(1, {}, 5), 1);
  EXPECT_EQ(groups(4, {.data = 1, .feature = 2}, 12), 2);
  EXPECT_EQ(groups(4, {.data = 1, .feature = 2}, 1), 2);  // one has nothing to do
  EXPECT_EQ(groups(6, {.data = 0, .feature = 3}, 12), 2);
  EXPECT_EQ(groups(6, {.data = 0, .feature = 3}, 1), 1);
}

TEST(Groups, FitTheMeshOfEveryPoint) {
  std::vector<SweepPoint> points(4);
  points[2].settings.config.mesh.feature = 2;
  EXPECT_EQ(groups_for(4, points), 2);
  points[3].settings.config.mesh.data = 4;
  EXPECT_EQ(groups_for(4, points), 1);
}

}  // namespace
}  // namespace megadict
