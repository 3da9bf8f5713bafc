#include "lab/run.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "base/buffer_view.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/stop_request.h"
#include "comm/agree.h"
#include "io/file.h"
#include "io/json_file.h"

namespace megadict {

namespace {

std::string folder_of(const LabExperiment& experiment, const LabRun& run) {
  return fmt::format("{}/{}{}{}", run.out, experiment.name,
                     run.scale.data_path.empty() ? "" : "_rows",
                     run.scale.quick  ? "_quick"
                     : run.scale.full ? "_full"
                                      : "");
}

std::string path_of(const std::string& folder, const LabCell& cell) {
  return fmt::format("{}/cells/{}.json", folder, cell.name());
}

// Nothing where the cell is not done.
std::optional<LabResult> read_cell(const std::string& folder, const LabCell& cell) {
  const std::string path = path_of(folder, cell);
  if (!file_exists(path)) return {};
  const nlohmann::json found = read_json(path);
  const bool whole = found.is_object() && found.contains("settings") && found.contains("numbers") &&
                     found.contains("seconds") && found["seconds"].is_number();
  if (!whole)
    fail(ExitCode::bad_data, fmt::format("'{}' is no cell of an experiment", path),
         "remove it, and it is run again");
  if (found["settings"] != nlohmann::json::parse(cell.settings.dump()))
    fail(ExitCode::usage, fmt::format("'{}' holds a cell of other settings", path),
         "another --out, or remove it");
  return LabResult{cell.group,    cell.seed,        found["seconds"].get<double>(),
                   cell.settings, found["numbers"], found.value("times", nlohmann::json::object())};
}

// Times stand beside the numbers, which are the same in every run.
void write_cell(const std::string& folder, const LabCell& cell, double seconds,
                const nlohmann::ordered_json& found) {
  nlohmann::ordered_json json = {{"settings", cell.settings}, {"seconds", seconds}};
  nlohmann::ordered_json numbers = nlohmann::ordered_json::object(), times = numbers;
  for (const auto& [key, value] : found.items())
    (key.starts_with("time_") ? times : numbers)[key] = value;
  json["numbers"] = numbers;
  if (!times.empty()) json["times"] = times;
  write_json(path_of(folder, cell), json);
}

// What is done, as rank 0 sees it.
std::vector<uint8_t> find_done(Communicator& world, const std::string& folder,
                               const std::vector<LabCell>& cells) {
  std::vector<uint8_t> done(cells.size(), 0);
  agree(world, [&] {
    if (world.rank() != 0) return;
    make_folders(folder + "/cells");
    for (size_t i = 0; i < cells.size(); ++i) done[i] = read_cell(folder, cells[i]) ? 1 : 0;
  });
  world.broadcast(view_of(done.data(), static_cast<int64_t>(done.size())), 0,
                  "cells that are done");
  return done;
}

void run_cells(const std::string& folder, const std::vector<LabCell>& mine, bool quiet) {
  for (const LabCell& cell : mine) {
    if (stop_requested() != StopRequest::none) return;
    const double begin = seconds_now();
    nlohmann::ordered_json numbers;
    try {
      if (cell.run_into) {
        const std::string files = fmt::format("{}/files/{}", folder, cell.name());
        make_folders(files);
        numbers = cell.run_into(files);
      } else {
        numbers = cell.run();
      }
    } catch (const Error& error) {
      fail(error.code(), fmt::format("cell {}: {}", cell.name(), error.what()), error.hint());
    }
    const double seconds = seconds_now() - begin;
    write_cell(folder, cell, seconds, numbers);
    if (!quiet) tell(fmt::format("{} is done after {:.1f} s", cell.name(), seconds));
  }
}

void finish(const std::string& folder, const LabExperiment& experiment, const LabRun& run,
            const std::vector<LabCell>& cells, const nlohmann::ordered_json& machine,
            VerdictCount& count) {
  std::vector<LabResult> all;
  double seconds = 0;
  for (const LabCell& cell : cells) {
    all.push_back(*read_cell(folder, cell));
    seconds += all.back().seconds;
  }
  const LabResults results(std::move(all));
  std::vector<LabRow> rows = experiment.table(results);
  if (run.scale.is_own())  // another problem than the one that was reported
    for (LabRow& row : rows) {
      row.reported.clear();
      row.band.reset();
    }
  std::erase_if(rows, [&](const LabRow& row) { return run.scale.is_own() && !row.ours; });
  nlohmann::ordered_json json = {{"experiment", experiment.name},
                                 {"items", experiment.items},
                                 {"summary", experiment.summary},
                                 {"quick", run.scale.quick},
                                 {"full", run.scale.full},
                                 {"seconds", seconds},
                                 {"machine", machine}};
  json["table"] = table_json(rows);
  for (const LabResult& result : results.all()) {
    nlohmann::ordered_json cell = {{"group", result.group},
                                   {"run", result.seed},
                                   {"seconds", result.seconds},
                                   {"settings", result.settings},
                                   {"numbers", result.numbers}};
    if (!result.times.empty()) cell["times"] = result.times;
    json["cells"].push_back(cell);
  }
  count = count_verdicts(rows);
  const std::string text = table_text(rows);
  write_json(folder + "/result.json", json);
  write_file_atomic(folder + "/table.txt", text + "\n");
  say(text);
  say(fmt::format("{}: {}; {:.0f} s of one core; {}/result.json", experiment.name, count.text(),
                  seconds, folder));
}

}  // namespace

std::vector<int> deal_cells(const std::vector<LabCell>& cells, int ranks) {
  std::vector<size_t> order(cells.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return cells[a].cost_s > cells[b].cost_s; });
  std::vector<double> load(static_cast<size_t>(ranks), 0);
  std::vector<int> owner(cells.size());
  for (const size_t cell : order) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += cells[cell].cost_s;
    owner[cell] = static_cast<int>(least - load.begin());
  }
  return owner;
}

std::string cost_text(double cost_s) {
  if (cost_s < 90) return fmt::format("about {:.0f} s on one core", std::max(1.0, cost_s));
  if (cost_s < 90 * 60) return fmt::format("about {:.0f} min on one core", cost_s / 60);
  return fmt::format("about {:.1f} h on one core", cost_s / 3600);
}

ExitCode run_experiment(Communicator& world, const LabExperiment& experiment, const LabRun& run,
                        const nlohmann::ordered_json& machine, VerdictCount& count) {
  const std::vector<LabCell> cells = experiment.cells(run.scale);
  const std::string folder = folder_of(experiment, run);
  const std::vector<uint8_t> done = find_done(world, folder, cells);
  std::vector<LabCell> open, mine;
  double cost_s = 0;
  for (size_t i = 0; i < cells.size(); ++i) {
    if (done[i] != 0) continue;
    open.push_back(cells[i]);
    cost_s += cells[i].cost_s;
  }
  say(fmt::format("{}: {} cells, {} done before; {}", experiment.name, cells.size(),
                  cells.size() - open.size(), cost_text(cost_s)));
  const std::vector<int> owner = deal_cells(open, world.size());
  for (size_t i = 0; i < open.size(); ++i)
    if (owner[i] == world.rank()) mine.push_back(open[i]);
  std::stable_sort(mine.begin(), mine.end(),
                   [](const LabCell& a, const LabCell& b) { return a.cost_s > b.cost_s; });
  run_cells(folder, mine, run.quiet);
  world.wait_for_all();
  const StopRequest stop = agreed_stop(world);
  if (stop != StopRequest::none) return code_of(stop);
  agree(world, [&] {
    if (world.rank() == 0) finish(folder, experiment, run, cells, machine, count);
  });
  return ExitCode::done;
}

}  // namespace megadict
