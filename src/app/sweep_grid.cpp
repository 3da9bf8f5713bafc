#include "app/sweep_grid.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "app/fields.h"
#include "app/ini.h"
#include "base/error.h"

namespace megadict {

namespace {

constexpr std::string_view kListed = "points.";
constexpr size_t kLongestName = 120;
constexpr size_t kMostPoints = 10000;

// What every point has of its own, or all have together.
constexpr std::pair<std::string_view, const char*> kNotVaried[] = {
    {"run.dir", "every point has its own below sweep.dir"},
    {"run.resume", "a sweep goes on with what it finds"},
    {"debug.watchdog_s", "it is the whole job's"},
    {"debug.check_collectives", "it is the whole job's"},
    {"debug.hang_rank", "it is the whole job's"},
    {"debug.hang_at", "it is the whole job's"},
};

[[noreturn]] void refuse(const std::string& where, const std::string& why,
                         const std::string& hint = "") {
  fail_agreed(ExitCode::usage, fmt::format("{}: {}", where, why), hint);
}

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

// "16, 32" to its parts; what stands between double quotes is one.
std::vector<std::string> parts_of(const std::string& text, char separator,
                                  const std::string& where) {
  std::vector<std::string> parts = {""};
  bool quoted = false;
  for (const char c : text) {
    if (c == '"')
      quoted = !quoted;
    else if (c == separator && !quoted)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  if (quoted) refuse(where, fmt::format("{} has a quote that does not end", start_in_quotes(text)));
  for (std::string& part : parts) part = trimmed(part);
  return parts;
}

void add_values(Grid& grid, const std::string& name, const std::string& text,
                const std::string& where) {
  const std::vector<std::string> values = parts_of(text, ',', where);
  if (std::find(values.begin(), values.end(), "") != values.end())
    refuse(where, fmt::format("{} = {}: a value is empty", name, start_in_quotes(text)));
  if (values.size() > 1)
    grid.axes.push_back({name, values, where});
  else
    grid.common.push_back({name, values.front(), where});
}

// "small = model.k=16 optim.lr=1e-3"
ListedPoint listed_point(const std::string& name, const std::string& text,
                         const std::string& where) {
  constexpr std::string_view kAllowed =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  if (name.empty() || name[0] == '.' || name.find_first_not_of(kAllowed) != std::string::npos)
    refuse(where, fmt::format("{} cannot be a point's name; allowed: letters, digits, . _ and -",
                              start_in_quotes(name)));
  ListedPoint point{name, {}};
  for (const std::string& word : parts_of(text, ' ', where)) {
    if (word.empty()) continue;
    const size_t equals = word.find('=');
    if (equals == 0 || equals == std::string::npos || equals + 1 == word.size())
      refuse(where, fmt::format("{} is not name=value", start_in_quotes(word)),
             "NAME = model.k=16 optim.lr=1e-3");
    point.values.push_back({word.substr(0, equals), word.substr(equals + 1), where});
  }
  if (point.values.empty())
    refuse(where, fmt::format("the point {} sets nothing", start_in_quotes(name)),
           "NAME = model.k=16 optim.lr=1e-3");
  return point;
}

const Field& field_for(const std::vector<Field>& fields, const GridValue& value) {
  for (const auto& [name, why] : kNotVaried)
    if (name == value.name) refuse(value.where, fmt::format("{} cannot be set: {}", name, why));
  for (const Field& field : fields)
    if (field.name == value.name) return field;
  const std::string near = nearest_name(value.name, names_of(fields));
  refuse(value.where, fmt::format("unknown name {}", start_in_quotes(value.name)),
         near.empty() ? "megadict sweep --help" : fmt::format("did you mean {}?", near));
}

// Stores the value; returns it as a user would type it.
std::string apply(const GridValue& value, Settings& settings) {
  const std::vector<Field> fields = fields_of(settings.config);
  const Field& field = field_for(fields, value);
  set_field(field, value.value, value.where);
  settings.sources[value.name] = value.where;
  return value_text(field);
}

bool on_command_line(const Settings& base, const std::string& name) {
  return source_of(base, name) == "command line";
}

// Every listed point (or none) with every combination of the axes' values.
std::vector<ListedPoint> combinations(const Grid& grid) {
  std::vector<ListedPoint> all = grid.listed;
  if (all.empty()) all.push_back({});
  for (const GridAxis& axis : grid.axes) {
    if (all.size() * axis.values.size() > kMostPoints)
      refuse(axis.where, fmt::format("the grid has more than {} points", kMostPoints));
    std::vector<ListedPoint> more;
    for (const ListedPoint& point : all)
      for (const std::string& value : axis.values) {
        more.push_back(point);
        more.back().values.push_back({axis.name, value, axis.where});
      }
    all = std::move(more);
  }
  return all;
}

void refuse_overlaps(const Grid& grid, const Settings& base) {
  std::map<std::string, std::string> varied;
  const auto vary = [&](const std::string& name, const std::string& where) {
    if (on_command_line(base, name))
      refuse(where, fmt::format("{} is varied here and given on the command line", name));
  };
  for (const GridAxis& axis : grid.axes) {
    vary(axis.name, axis.where);
    varied.emplace(axis.name, axis.where);
  }
  for (const ListedPoint& point : grid.listed) {
    std::map<std::string, int> seen;
    for (const GridValue& value : point.values) {
      vary(value.name, value.where);
      if (const auto axis = varied.find(value.name); axis != varied.end())
        refuse(value.where, fmt::format("{} is an axis, too ({})", value.name, axis->second));
      if (seen[value.name]++ > 0) refuse(value.where, fmt::format("{} is set twice", value.name));
    }
  }
}

uint64_t hash_of(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

std::string joined(const std::vector<GridValue>& values, size_t from) {
  std::string text;
  for (size_t i = from; i < values.size(); ++i)
    text += fmt::format("{}{}={}", text.empty() ? "" : "_", values[i].name, values[i].value);
  return text;
}

}  // namespace

std::string point_name(const std::string& listed, const std::string& key) {
  const std::string whole = listed.empty() ? key : key.empty() ? listed : listed + "_" + key;
  std::string name;
  for (const char c : whole) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) != 0 ||
                       std::string_view("._=+-").find(c) != std::string_view::npos;
    name += plain ? c : '-';
  }
  if (name == whole && name.size() <= kLongestName) return name;
  return fmt::format("{}-{:06x}", name.substr(0, kLongestName - 7), hash_of(whole) & 0xFFFFFF);
}

Grid read_grid(const std::string& path) {
  Grid grid;
  for (const IniEntry& entry : read_ini(path)) {
    const std::string where = fmt::format("{}:{}", path, entry.line);
    if (entry.name.starts_with(kListed))
      grid.listed.push_back(listed_point(entry.name.substr(kListed.size()), entry.value, where));
    else
      add_values(grid, entry.name, entry.value, where);
  }
  return grid;
}

void add_to_grid(Grid& grid, const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == 0 || equals == std::string::npos)
    refuse("--set", fmt::format("{} is not NAME=VALUE,VALUE", start_in_quotes(text)),
           "--set model.k=16,32");
  const std::string name = trimmed(text.substr(0, equals));
  for (const GridAxis& axis : grid.axes)
    if (axis.name == name && axis.where == "--set") refuse("--set", name + " is given twice");
  for (const GridValue& value : grid.common)
    if (value.name == name && value.where == "--set") refuse("--set", name + " is given twice");
  std::erase_if(grid.axes, [&](const GridAxis& axis) { return axis.name == name; });
  std::erase_if(grid.common, [&](const GridValue& value) { return value.name == name; });
  add_values(grid, name, text.substr(equals + 1), "--set");
}

std::vector<SweepPoint> points_of(const Grid& grid, const Settings& base) {
  Settings common = base;
  for (const GridValue& value : grid.common) {
    Settings ignored = common;
    // The command line has won; the file's value must be sound all the same.
    apply(value, on_command_line(base, value.name) ? ignored : common);
  }
  if (grid.axes.empty() && grid.listed.empty())
    fail_agreed(ExitCode::usage, "the grid varies nothing: no name has several values",
                "--set model.k=16,32, or lists and [points] in the file of --grid");
  refuse_overlaps(grid, base);
  std::vector<SweepPoint> points;
  std::map<std::string, std::string> seen;  // values to name
  for (const ListedPoint& wanted : combinations(grid)) {
    SweepPoint point{"", wanted.values, common};
    for (GridValue& value : point.values) value.value = apply(value, point.settings);
    const size_t own = point.values.size() - grid.axes.size();  // of the listed point
    point.name = point_name(wanted.name, joined(point.values, own));
    try {
      check_config(point.settings.config);
    } catch (const Error& error) {
      throw Error(error.code(), fmt::format("point {}: {}", point.name, error.what()), error.hint(),
                  error.agreed());
    }
    const auto [first, is_new] = seen.emplace(joined(point.values, 0), point.name);
    if (!is_new)
      fail_agreed(ExitCode::usage,
                  fmt::format("the grid holds a point twice: {}{}", point.name,
                              first->second == point.name ? "" : " is " + first->second));
    points.push_back(std::move(point));
  }
  return points;
}

}  // namespace megadict
