// megadict sweep: a grid of training runs over groups of ranks, one table at the end (sweep.h); or
// dictionaries that are there, judged in one pass (sweep_evaluate.h).
#include <fmt/format.h>

#include <algorithm>

#include "app/commands.h"
#include "app/fields.h"
#include "app/options.h"
#include "app/sweep.h"
#include "app/sweep_evaluate.h"
#include "app/sweep_grid.h"
#include "app/sweep_stream.h"
#include "app/sweep_table.h"
#include "app/together.h"
#include "base/error.h"
#include "base/log.h"
#include "comm/watchdog.h"
#include "io/file.h"

namespace megadict {

namespace {

struct SweepOptions {
  SweepConfig sweep;
  std::string grid;
  int groups = 0;
  bool count = false, list = false, collect = false;
  Settings settings;
};

// Given without a value.
constexpr std::string_view kSwitches[] = {"--count", "--list", "--collect", "--retry"};
// A point's own, set by the sweep.
constexpr std::string_view kOwn[] = {"run.dir", "run.resume"};

std::vector<Field> own_fields(SweepOptions& own) {
  return {
      {"grid", &own.grid, "", "INI file whose values may be lists; [points] lists single ones"},
      {"sweep.dir", &own.sweep.dir, "", "folder of the sweep: points/NAME, sweep.csv, sweep.json"},
      {"sweep.point", &own.sweep.only, "", "this point alone, counted from 0; -1 = all",
       between(-1, 1e9)},
      {"mesh.sweep", &own.groups, "groups",
       "of equal size, a point each at a time; 0 = as many as points and mesh allow",
       between(0, 1048576)},
      {"sweep.share_stream", &own.sweep.share_stream, "",
       "one group reads for all, which train in lockstep; data settings and seed of all alike"},
      {"sort", &own.sweep.sort, "",
       "the table's column; -NAME: the largest first; default fvu, else train/fvu"},
      {"count", &own.count, "", "print the number of points and end"},
      {"list", &own.list, "", "print the points and end"},
      {"collect", &own.collect, "", "make the table of what is there and end"},
      {"retry", &own.sweep.retry, "", "try failed points again"},
  };
}

OptionSet options(SweepOptions& own) {
  std::vector<Field> fields = own_fields(own);
  for (const Field& field : fields_of(own.settings.config))
    if (std::find(std::begin(kOwn), std::end(kOwn), field.name) == std::end(kOwn))
      fields.push_back(field);
  return {.command = "sweep",
          .summary =
              "Trains every point of a grid (--grid FILE, --set NAME=VALUE,VALUE ...), each "
              "on a group of ranks; goes on where it was interrupted.",
          .fields = fields,
          .config_file = true,
          .elsewhere = {std::begin(kOwn), std::end(kOwn)}};
}

// --set may come several times, and switches without a value.
Args plain_args(const Args& args, std::vector<std::string>& sets) {
  Args plain;
  for (size_t i = 0; i < args.size(); ++i) {
    const bool has_next = i + 1 < args.size() && !args[i + 1].starts_with("--");
    if (args[i].starts_with("--set=")) {
      sets.push_back(args[i].substr(6));
    } else if (args[i] == "--set") {
      if (!has_next) fail_agreed(ExitCode::usage, "--set needs a value", "--set model.k=16,32");
      sets.push_back(args[++i]);
    } else {
      plain.push_back(args[i]);
      const bool is_switch =
          std::find(std::begin(kSwitches), std::end(kSwitches), args[i]) != std::end(kSwitches);
      if (is_switch && !has_next) plain.emplace_back("true");
    }
  }
  return plain;
}

// What a grid file says of the sweep itself, unless the command line did.
void take_own_values(Grid& grid, SweepOptions& own, const Sources& sources) {
  const std::vector<Field> fields = own_fields(own);
  const auto is_own = [&](const GridValue& value) {
    for (const Field& field : fields) {
      if (field.name != value.name) continue;
      SweepOptions ignored;
      const std::vector<Field> unused = own_fields(ignored);
      const auto index = static_cast<size_t>(&field - fields.data());
      set_field(sources.count(field.name) != 0 ? unused[index] : field, value.value, value.where);
      return true;
    }
    return false;
  };
  std::erase_if(grid.common, is_own);
}

int settle_groups(const SweepOptions& own, int ranks, const std::vector<SweepPoint>& points) {
  if (own.sweep.only >= 0) {
    if (own.groups > 1)
      fail_agreed(
          ExitCode::usage,
          fmt::format("mesh.sweep = {} with sweep.point: one point has all ranks", own.groups),
          "leave mesh.sweep out");
    return 1;
  }
  if (own.groups == 0) return groups_for(ranks, points);
  if (ranks % own.groups != 0)
    fail_agreed(
        ExitCode::usage,
        fmt::format("mesh.sweep = {} does not cut {} rank(s) into equal groups", own.groups, ranks),
        "a number that divides the ranks");
  return own.groups;
}

// Better said now than by every point.
void refuse_meshes(const std::vector<SweepPoint>& points, int ranks) {
  for (const SweepPoint& point : points) try {
      resolve_mesh(point.settings.config.mesh, ranks);
    } catch (const Error& error) {
      fail_agreed(error.code(), fmt::format("point {}: {} of a group", point.name, error.what()),
                  error.hint());
    }
}

void refuse_point(int64_t point, int64_t count) {
  if (point >= count)
    fail_agreed(ExitCode::usage,
                fmt::format("sweep.point = {}: the grid has {} points; allowed: 0 to {}", point,
                            count, count - 1));
}

std::string list_text(const std::vector<SweepPoint>& points) {
  std::string text;
  for (size_t i = 0; i < points.size(); ++i)
    text += fmt::format("{}{:>4} {}", i == 0 ? "" : "\n", i, points[i].name);
  return text;
}

void require(const std::string& value, const char* name) {
  if (value.empty())
    fail_agreed(ExitCode::usage, fmt::format("{} is needed and was not given", name),
                "megadict sweep --help");
}

}  // namespace

std::string help_sweep() {
  SweepOptions own;
  return help_text(options(own)) +
         "\n\n  --set NAME=VALUE,VALUE      one axis of the grid; may be given several times\n\n" +
         help_sweep_evaluation();
}

int run_sweep_command(Launch& launch, const Args& args) {
  if (is_evaluation(args)) return run_sweep_evaluation(launch, args);
  SweepOptions own;
  std::vector<std::string> sets;
  own.settings.sources = read_options(options(own), plain_args(args, sets));
  Grid grid = own.grid.empty() ? Grid{} : read_grid(own.grid);
  for (const std::string& set : sets) add_to_grid(grid, set);
  take_own_values(grid, own, own.settings.sources);
  const std::vector<SweepPoint> points = points_of(grid, own.settings);
  const auto count = static_cast<int64_t>(points.size());
  if (own.count || own.list) {
    say(own.count ? fmt::format("{}", count) : list_text(points));
    return 0;
  }
  require(own.sweep.dir, "--sweep.dir");
  refuse_point(own.sweep.only, count);
  if (!own.sweep.sort.empty()) check_sort(own.sweep.sort, points);
  if (own.collect) {
    rank_zero_first(launch.world(), [&] {
      refuse_other_sweep(own.sweep.dir, points);
      if (launch.facts().rank == 0) say(collect_table(own.sweep.dir, points, own.sweep.sort).text);
    });
    return 0;
  }
  for (const SweepPoint& point : points) require(point.settings.config.data.path, "data.path");
  own.sweep.groups = settle_groups(own, launch.facts().ranks, points);
  refuse_meshes(points, launch.facts().ranks / own.sweep.groups);
  if (own.sweep.share_stream) refuse_other_streams(points);
  refuse_output_folder(launch.world(), own.sweep.dir);
  start_watchdog(own.settings.config.debug);
  return static_cast<int>(run_sweep(launch, own.sweep, points, args));
}

}  // namespace megadict
