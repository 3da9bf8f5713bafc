#include "app/sweep_table.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "app/fields.h"
#include "eval/metrics.h"
#include "io/file.h"
#include "io/json_file.h"
#include "io/json_lines.h"
#include "train/checkpoint.h"

namespace megadict {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

namespace {

constexpr const char* kRecord = "/point.json";
// Of the last logged step: what there is without held-out rows.
constexpr const char* kTrainMetrics[] = {"fvu", "l0", "dead_pct", "tokens_per_s"};
// Of the table on the terminal, where some point has them.
constexpr const char* kShown[] = {"fvu", "l0", "dead_pct", "mcc", "train/fvu", "train/l0"};

struct Row {
  int64_t index = 0;
  const SweepPoint* point = nullptr;
  std::string folder;
  PointRecord record;
};

void add_numbers(const nlohmann::json& from, PointRecord& record) {
  for (const auto& [name, value] : from.items())
    if (value.is_number()) record.metrics[name] = value.get<double>();
}

void read_run(const std::string& folder, PointRecord& record) {
  const std::string log = folder + "/metrics.jsonl";
  const bool is_run = file_exists(log);
  const std::string eval = folder + (is_run ? "/final/eval.json" : "/eval.json");
  if (file_exists(eval)) add_numbers(read_json(eval), record);
  if (!is_run) return;
  const std::vector<ordered_json> lines = read_json_lines(log);
  const auto last = std::find_if(lines.rbegin(), lines.rend(),
                                 [](const ordered_json& line) { return line.contains("fvu"); });
  if (last == lines.rend()) return;
  for (const char* name : kTrainMetrics)
    if (const auto value = last->find(name); value != last->end() && value->is_number())
      record.metrics[std::string("train/") + name] = value->get<double>();
}

std::optional<double> metric_of(const Row& row, const std::string& name) {
  const auto found = row.record.metrics.find(name);
  if (found == row.record.metrics.end() || !std::isfinite(found->second)) return std::nullopt;
  return found->second;
}

std::string value_of(const Row& row, const std::string& name) {
  for (const GridValue& value : row.point->values)
    if (value.name == name) return value.value;
  return "";
}

// What the grid varies, in the order in which the points name it.
std::vector<std::string> varied_names(const std::vector<SweepPoint>& points) {
  std::vector<std::string> names;
  for (const SweepPoint& point : points)
    for (const GridValue& value : point.values)
      if (std::find(names.begin(), names.end(), value.name) == names.end())
        names.push_back(value.name);
  return names;
}

std::vector<std::string> metric_names(const std::vector<Row>& rows,
                                      const std::vector<std::string>& varied) {
  std::vector<std::string> names;
  const auto add = [&](const std::string& name) {
    const bool some = std::any_of(rows.begin(), rows.end(),
                                  [&](const Row& row) { return metric_of(row, name).has_value(); });
    const auto is_in = [&](const std::vector<std::string>& list) {
      return std::find(list.begin(), list.end(), name) != list.end();
    };
    if (some && !is_in(names) && !is_in(varied)) names.push_back(name);
  };
  for (const char* name : kShown) add(name);
  for (const Row& row : rows)
    for (const auto& [name, value] : row.record.metrics) add(name);
  return names;
}

std::vector<std::string> sortable(const std::vector<SweepPoint>& points) {
  std::vector<std::string> names = varied_names(points);
  names.insert(names.end(), {"index", "seconds", "mcc", "mcc_cosine", "mmcs"});
  for (const Metric& metric : all_metrics()) names.emplace_back(metric.name);
  for (const char* name : kTrainMetrics) names.push_back(std::string("train/") + name);
  return names;
}

// What a row is sorted by: numbers before texts.
std::pair<double, std::string> sort_key(const Row& row, const std::string& name) {
  if (name == "index") return {static_cast<double>(row.index), ""};
  if (name == "seconds") return {row.record.seconds, ""};
  if (const auto metric = metric_of(row, name)) return {*metric, ""};
  const std::string text = value_of(row, name);
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  const bool is_number = !text.empty() && *end == '\0';
  return {is_number ? number : std::nan(""), text};
}

void sort_rows(std::vector<Row>& rows, const std::string& sort) {
  const bool largest_first = sort.starts_with("-");
  const std::string name = largest_first ? sort.substr(1) : sort;
  std::stable_sort(rows.begin(), rows.end(), [&](const Row& a, const Row& b) {
    const auto left = sort_key(a, name), right = sort_key(b, name);
    const bool no_left = std::isnan(left.first), no_right = std::isnan(right.first);
    if (no_left != no_right) return no_right;
    if (no_left) return left.second < right.second;
    return largest_first ? left.first > right.first : left.first < right.first;
  });
}

std::string csv_cell(const std::string& text) {
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"') quoted += c;
    quoted += c;
  }
  return quoted + "\"";
}

void write_csv(const std::string& path, const std::vector<Row>& rows,
               const std::vector<std::string>& varied, const std::vector<std::string>& metrics) {
  std::string text = "index,name,status,code";
  for (const auto* names : {&varied, &metrics})
    for (const std::string& name : *names) text += fmt::format(",{}", csv_cell(name));
  text += ",seconds,run,error\n";
  for (const Row& row : rows) {
    text += fmt::format("{},{},{},{}", row.index, csv_cell(row.point->name), row.record.status,
                        static_cast<int>(row.record.code));
    for (const std::string& name : varied)
      text += fmt::format(",{}", csv_cell(value_of(row, name)));
    for (const std::string& name : metrics) {
      const auto value = metric_of(row, name);
      text += value ? fmt::format(",{}", *value) : ",";
    }
    text += fmt::format(",{:.3f},{},{}\n", row.record.seconds, csv_cell(row.folder),
                        csv_cell(row.record.error));
  }
  write_file_atomic(path, text);
}

ordered_json json_of(const Row& row) {
  ordered_json out;
  out["index"] = row.index;
  out["name"] = row.point->name;
  out["status"] = row.record.status;
  out["code"] = static_cast<int>(row.record.code);
  out["error"] = row.record.error;
  out["settings"] = ordered_json::object();
  for (const GridValue& value : row.point->values) out["settings"][value.name] = value.value;
  out["metrics"] = row.record.metrics;
  out["seconds"] = row.record.seconds;
  out["run"] = row.folder;
  return out;
}

// Columns as wide as what stands in them; numbers to the right.
std::string text_table(const std::vector<std::vector<std::string>>& cells) {
  std::string text;
  for (const auto& row : cells) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c) {
      size_t width = 0;
      for (const auto& other : cells) width = std::max(width, other[c].size());
      const bool last = c + 1 == row.size();
      line += last ? row[c] : fmt::format("{:>{}}  ", row[c], width);
    }
    text += (text.empty() ? "" : "\n") + line;
  }
  return text;
}

std::string terminal_table(const std::vector<Row>& rows, const std::vector<std::string>& varied,
                           const std::vector<std::string>& metrics) {
  std::vector<std::string> shown;
  for (const char* name : kShown)
    if (std::find(metrics.begin(), metrics.end(), name) != metrics.end()) shown.emplace_back(name);
  std::vector<std::vector<std::string>> cells = {{"point"}};
  cells[0].insert(cells[0].end(), varied.begin(), varied.end());
  cells[0].insert(cells[0].end(), shown.begin(), shown.end());
  cells[0].insert(cells[0].end(), {"status", "run"});
  for (const Row& row : rows) {
    std::vector<std::string> line = {fmt::format("{}", row.index)};
    for (const std::string& name : varied) line.push_back(value_of(row, name));
    for (const std::string& name : shown) {
      const auto value = metric_of(row, name);
      line.push_back(value ? fmt::format("{:.5g}", *value) : "-");
    }
    const bool failed = row.record.status == "failed";
    line.push_back(failed ? fmt::format("failed {}", static_cast<int>(row.record.code))
                          : row.record.status);
    line.push_back(row.folder + (failed ? ": " + row.record.error : ""));
    cells.push_back(std::move(line));
  }
  return text_table(cells);
}

// The records, with who is at work.
PointRecord record_now(const std::string& folder) {
  PointRecord record = read_record(folder);
  const bool has_ended = record.status == "done" || record.status == "failed";
  if (!has_ended && FolderLock::is_held(folder)) record.status = "running";
  return record;
}

FolderLock lock_of_table(const std::string& sweep) {
  constexpr double kPatience_s = 60;  // beside some thousand others
  FolderLock lock;
  if (!lock.take(sweep + "/points", kPatience_s))
    fail(ExitCode::error,
         fmt::format("another process has been writing the table of {} for {} s", in_quotes(sweep),
                     kPatience_s),
         "--collect makes it again");
  return lock;
}

}  // namespace

std::map<std::string, std::string> fixed_settings(const SweepPoint& point) {
  Config config = point.settings.config;
  std::map<std::string, std::string> out;
  for (const Field& field : fields_of(config))
    if (field.on_resume != OnResume::free || field.name == "data.path")
      out[field.name] = value_text(field);
  return out;
}

std::string point_folder(const std::string& sweep, const SweepPoint& point) {
  return sweep + "/points/" + point.name;
}

std::string obstacle_at(const std::string& folder) {
  std::error_code ignored;
  if (!fs::exists(fs::symlink_status(folder, ignored))) return "";
  if (!folder_exists(folder)) return fmt::format("{} is no folder", in_quotes(folder));
  if (::access(folder.c_str(), R_OK | X_OK) == 0) return "";
  return fmt::format("cannot read {}: {}", in_quotes(folder), std::strerror(errno));
}

void refuse_obstacle(const std::string& folder) {
  const std::string why = obstacle_at(folder);
  if (!why.empty()) fail(ExitCode::usage, why, "move it away");
}

PointRecord read_record(const std::string& folder) {
  PointRecord record;
  if (const std::string why = obstacle_at(folder); !why.empty())
    return {.status = "failed", .code = ExitCode::usage, .error = why};
  const std::string path = folder + kRecord;
  if (!file_exists(path)) {
    const bool begun = file_exists(folder + "/metrics.jsonl");
    if (begun) record.status = "interrupted";
    return record;
  }
  const auto refuse = [&](const std::string& why) {
    fail(ExitCode::bad_data, fmt::format("'{}' is no record of a sweep's point: {}", path, why),
         "remove it: the point is done again from its newest checkpoint");
  };
  const nlohmann::json json = read_json(path);
  try {
    record.status = json.at("status").get<std::string>();
    if (record.status != "done" && record.status != "failed") refuse("no status of a point's end");
    if (!json.at("code").is_number_unsigned() || json.at("code") > 255) refuse("no exit code");
    if (!json.at("metrics").is_object()) refuse("no metrics");
    record.code = static_cast<ExitCode>(json.at("code").get<int>());
    record.error = json.at("error").get<std::string>();
    record.seconds = json.at("seconds").get<double>();
    add_numbers(json.at("metrics"), record);
    record.settings = json.at("settings").get<std::map<std::string, std::string>>();
  } catch (const nlohmann::json::exception& error) {
    refuse(error.what());
  }
  return record;
}

void forget_record(const std::string& folder) {
  remove_file(folder + kRecord);
}

void write_record(const std::string& folder, const SweepPoint& point, PointRecord record) {
  if (record.status == "done") read_run(folder, record);
  ordered_json out;
  out["name"] = point.name;
  out["status"] = record.status;
  out["code"] = static_cast<int>(record.code);
  out["error"] = record.error;
  out["seconds"] = record.seconds;
  out["metrics"] = record.metrics;
  out["settings"] = record.settings;
  write_json(folder + kRecord, out);
}

void refuse_other_settings(const std::string& folder,
                           const std::map<std::string, std::string>& settings,
                           const PointRecord& record) {
  if (record.status != "done") return;
  for (const auto& [name, now] : settings) {
    const auto before = record.settings.find(name);
    if (before == record.settings.end() || before->second == now) continue;
    fail(ExitCode::usage,
         fmt::format("{} is finished with {} = {}, the sweep now says {}", in_quotes(folder), name,
                     in_quotes(before->second), in_quotes(now)),
         "another sweep.dir, or remove that folder");
  }
}

void refuse_other_sweep(const std::string& sweep, const std::vector<SweepPoint>& points) {
  if (!folder_exists(sweep + "/points"))
    fail(ExitCode::usage, fmt::format("sweep.dir {} holds no sweep", in_quotes(sweep)));
  bool any = false;
  for (const SweepPoint& point : points) {
    const std::string folder = point_folder(sweep, point);
    any = any || folder_exists(folder);
    refuse_other_settings(folder, fixed_settings(point), read_record(folder));
  }
  if (!any)
    fail(ExitCode::usage,
         fmt::format("sweep.dir {} holds none of the grid's {} points", in_quotes(sweep),
                     points.size()),
         "the grid it was begun with");
}

void check_sort(const std::string& sort, const std::vector<SweepPoint>& points) {
  const std::string name = sort.starts_with("-") ? sort.substr(1) : sort;
  const std::vector<std::string> names = sortable(points);
  if (std::find(names.begin(), names.end(), name) != names.end()) return;
  const std::string near = nearest_name(name, names);
  fail_agreed(ExitCode::usage,
              fmt::format("sort = {}: no such column; allowed: a metric of `megadict eval`, a name "
                          "that the grid varies, index, seconds, train/fvu ...",
                          in_quotes(sort)),
              near.empty() ? "--sort fvu" : fmt::format("did you mean {}?", near));
}

CollectedTable collect_table(const std::string& sweep, const std::vector<SweepPoint>& points,
                             const std::string& sort) {
  const FolderLock lock = lock_of_table(sweep);
  remove_unfinished(sweep);
  std::vector<Row> rows;
  CollectedTable table;
  for (const SweepPoint& point : points) {
    const std::string folder = point_folder(sweep, point);
    table.records.push_back(record_now(folder));
    rows.push_back({static_cast<int64_t>(rows.size()), &point, folder, table.records.back()});
  }
  const std::vector<std::string> varied = varied_names(points),
                                 metrics = metric_names(rows, varied);
  std::string by = sort;
  if (by.empty())
    by = std::find(metrics.begin(), metrics.end(), "fvu") != metrics.end() ? "fvu" : "train/fvu";
  sort_rows(rows, by);
  write_csv(sweep + "/sweep.csv", rows, varied, metrics);
  ordered_json json;
  json["sorted_by"] = by;
  json["varied"] = varied;
  json["points"] = ordered_json::array();
  for (const Row& row : rows) json["points"].push_back(json_of(row));
  write_json(sweep + "/sweep.json", json);
  table.text = terminal_table(rows, varied, metrics);
  return table;
}

}  // namespace megadict
