// What a sweep knows of its points: a record in each point's folder, and the table of all, printed
// and as sweep.csv and sweep.json.
#pragma once

#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "app/sweep_grid.h"
#include "base/error.h"

namespace megadict {

// "waiting" (nothing there), "interrupted" (a run without its end), "done", "failed"; in a table
// also "running" (a process works on it).
struct PointRecord {
  std::string status = "waiting";
  ExitCode code = ExitCode::done;
  std::string error = {};                            // one line
  double seconds = 0;                                // of the start that ended it
  std::map<std::string, double> metrics = {};        // of final/eval.json and the last logged step
  std::map<std::string, std::string> settings = {};  // what a resume may not change freely
};

// Of a training run, for its record.
std::map<std::string, std::string> fixed_settings(const SweepPoint& point);

// SWEEP/points/NAME
std::string point_folder(const std::string& sweep, const SweepPoint& point);

// Why a point cannot have its folder: something else stands in its place. "" where it can.
std::string obstacle_at(const std::string& folder);
// Exit 2 where there is one.
void refuse_obstacle(const std::string& folder);

// What stands in the folder; an obstacle has failed with 2. Exit 3 for a record that cannot be
// read.
PointRecord read_record(const std::string& folder);
// So that a point begun again has none until it ends.
void forget_record(const std::string& folder);
// The numbers of a run, or of an evaluation alone (eval.json), beside what the sweep knows of its
// end.
void write_record(const std::string& folder, const SweepPoint& point, PointRecord record);

// Exit 2: a finished point had other settings than these.
void refuse_other_settings(const std::string& folder,
                           const std::map<std::string, std::string>& settings,
                           const PointRecord& record);

// Exit 2: what is in the folder is no sweep, or one of other points or settings. Its table would
// be lost.
void refuse_other_sweep(const std::string& sweep, const std::vector<SweepPoint>& points);

// Exit 2 (agreed) for something that no table is sorted by: "fvu", "-explained_variance" (the
// largest first), a name that the grid varies.
void check_sort(const std::string& sort, const std::vector<SweepPoint>& points);

struct CollectedTable {
  std::string text;                  // for the terminal
  std::vector<PointRecord> records;  // of the points, in their order
};

// Reads every record; writes SWEEP/sweep.csv and sweep.json. Rows without the metric come last. One
// process at a time: who ends last leaves the table of all. SWEEP/points is there.
CollectedTable collect_table(const std::string& sweep, const std::vector<SweepPoint>& points,
                             const std::string& sort);

}  // namespace megadict
