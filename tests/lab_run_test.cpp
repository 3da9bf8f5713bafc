// Cells on ranks: the same result on every number of them, kept as soon as they are done.
#include "lab/run.h"

#include <gmock/gmock.h>

#include <cmath>

#include "base/buffer_view.h"
#include "base/error.h"
#include "comm/agree.h"
#include "io/file.h"
#include "io/json_file.h"
#include "support/mpi_main.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::TempFolder;

int64_t cells_run = 0;  // by this rank

std::vector<LabCell> square_cells(const LabScale& scale) {
  std::vector<LabCell> cells;
  for (const int64_t side : {3, 5, 7})
    for (int64_t seed = 0; seed < 3; ++seed)
      cells.push_back(
          {.group = "side" + std::to_string(side),
           .seed = seed,
           .cost_s = static_cast<double>(side),
           .settings = {{"side", side}, {"steps", scale.steps}},
           .run = [=] {
             ++cells_run;
             if (scale.rate > 0 && side == 5) fail(ExitCode::diverged, "step 7");
             return nlohmann::ordered_json{{"area", side * side + seed}, {"time_ms", side}};
           }});
  return cells;
}

std::vector<LabRow> square_table(const LabResults& r) {
  return {r.row("three", "side3", "area", "10", Band{9, 11}),
          r.row("five", "side5", "area", "30", Band{29, 31}),
          r.row("six", "side6", "area", "36"),
          r.row("time", "side7", "time_ms", ""),
          claim_row("small", 5, "< 1", {.high = 1}),
          claim_row("large", 5, "> 1", {.low = 1})};
}

constexpr LabExperiment kSquares = {"squares", "X1", "areas", square_cells, square_table};

struct Ran {
  ExitCode code = ExitCode::done;
  int64_t cells = 0;  // by all ranks
  VerdictCount count;
  nlohmann::json result;
};

Ran run_squares(const std::string& out, const LabScale& scale = {}) {
  Communicator& world = test_world();
  Ran ran;
  cells_run = 0;
  ran.code =
      run_experiment(world, kSquares, {.out = out, .scale = scale, .quiet = true}, {}, ran.count);
  ran.cells = cells_run;
  world.all_reduce(view_of(&ran.cells, 1), ReduceOp::sum, "cells");
  if (world.rank() == 0) ran.result = read_json(out + "/squares/result.json");
  return ran;
}

std::string common_folder(const TempFolder& own) {
  const std::string mine = own.path();
  std::vector<uint8_t> path(mine.begin(), mine.end());
  path.resize(512);
  test_world().broadcast(view_of(path.data(), 512), 0, "folder");
  return reinterpret_cast<const char*>(path.data());
}

TEST(LabRun, EveryCellOnceAndATable) {
  const TempFolder folder;
  const std::string out = common_folder(folder);
  const Ran ran = run_squares(out);
  EXPECT_EQ(ran.cells, 9);
  test_world().barrier("read");
  if (test_world().rank() != 0) return;
  EXPECT_EQ(ran.count.met, 1);
  EXPECT_EQ(ran.count.missed, 1);
  EXPECT_EQ(ran.count.not_covered, 2);
  EXPECT_EQ(ran.count.holds, 1);
  EXPECT_EQ(ran.count.fails, 1);
  ASSERT_EQ(ran.result["cells"].size(), 9);
  for (size_t i = 0; i < 9; ++i) {
    const int64_t side = 3 + 2 * static_cast<int64_t>(i / 3);
    EXPECT_EQ(ran.result["cells"][i]["numbers"]["area"], side * side + static_cast<int64_t>(i % 3));
  }
  EXPECT_EQ(ran.result["table"][0]["ours"], 10);
  EXPECT_NEAR(ran.result["table"][0]["sd"].get<double>(), std::sqrt(2.0 / 3), 1e-12);
  EXPECT_EQ(ran.result["table"][1]["verdict"], "MISSED");
  EXPECT_TRUE(ran.result["table"][2]["ours"].is_null());
  EXPECT_EQ(ran.result["table"][3]["ours"], 7);
  EXPECT_EQ(ran.result["table"][4]["verdict"], "DOES NOT HOLD");
}

TEST(LabRun, TimesStandBesideTheNumbers) {
  const TempFolder folder;
  const Ran ran = run_squares(common_folder(folder));
  test_world().barrier("read");
  if (test_world().rank() != 0) return;
  EXPECT_FALSE(ran.result["cells"][0]["numbers"].contains("time_ms"));
  EXPECT_EQ(ran.result["cells"][0]["times"]["time_ms"], 3);
}

TEST(LabRun, GoesOnWhereItWasInterrupted) {
  const TempFolder folder;
  const std::string out = common_folder(folder);
  run_squares(out);
  if (test_world().rank() == 0) {
    remove_file(out + "/squares/cells/side3_seed1.json");
    remove_file(out + "/squares/cells/side7_seed2.json");
  }
  test_world().barrier("removed");
  EXPECT_EQ(run_squares(out).cells, 2);
  EXPECT_EQ(run_squares(out).cells, 0);
}

TEST(LabRun, OtherSettingsAreRefusedAndNothingIsLost) {
  const TempFolder folder;
  const std::string out = common_folder(folder);
  run_squares(out);
  try {
    run_squares(out, {.steps = 5});
    ADD_FAILURE() << "taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_THAT(error.what(), testing::HasSubstr("side3_seed0.json"));
  }
  EXPECT_EQ(run_squares(out).cells, 0);
}

TEST(LabRun, AnotherProblemHasNoBands) {
  const TempFolder folder;
  const Ran ran = run_squares(common_folder(folder), {.steps = 5});
  test_world().barrier("read");
  if (test_world().rank() != 0) return;
  EXPECT_EQ(ran.count.met + ran.count.missed, 0);
  EXPECT_EQ(ran.result["table"].size(), 5);
  EXPECT_EQ(ran.result["table"][0]["reported"], "");
}

TEST(LabRun, TheDearestCellsAreSpread) {
  std::vector<LabCell> cells(5);
  for (size_t i = 0; i < 5; ++i) cells[i].cost_s = i == 2 ? 10 : 3;
  EXPECT_THAT(deal_cells(cells, 2), testing::ElementsAre(1, 1, 0, 1, 1));
  EXPECT_THAT(deal_cells(cells, 1), testing::Each(0));
}

}  // namespace
}  // namespace megadict
