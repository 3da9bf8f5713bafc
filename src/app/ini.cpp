#include "app/ini.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <string_view>

#include "app/field.h"
#include "base/error.h"

namespace megadict {

namespace {

constexpr std::string_view kBlank = " \t\r\f\v";
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";  // some editors begin UTF-8 with it

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(kBlank);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

std::string_view without_comment(std::string_view line) {
  for (size_t i = 0; i < line.size(); ++i) {
    const bool starts = line[i] == '#' || line[i] == ';';
    if (starts && (i == 0 || kBlank.find(line[i - 1]) != std::string_view::npos))
      return line.substr(0, i);
  }
  return line;
}

[[noreturn]] void refuse(const std::string& path, int line, const std::string& why) {
  fail_agreed(ExitCode::usage, fmt::format("{}:{}: {}", path, line, why));
}

// "[model]" to "model."; "[]" to "".
std::string section_prefix(std::string_view line, const std::string& path, int number) {
  if (line.back() != ']')
    refuse(path, number, fmt::format("section {} has no closing ]", start_in_quotes(line)));
  const std::string name(trimmed(line.substr(1, line.size() - 2)));
  return name.empty() ? "" : name + ".";
}

// Whole, but not without end: /dev/zero is no configuration.
std::string read_text(const std::string& path) {
  constexpr size_t kMostBytes = 1 << 20;
  std::string text(kMostBytes + 1, '\0');
  std::ifstream file(path);
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.good())
    fail_agreed(ExitCode::usage,
                fmt::format("config file {} has more than {} bytes", in_quotes(path), kMostBytes));
  // A missing file, a folder and a failing disk all end here: reading stopped before the end.
  if (!file.eof())
    fail_agreed(ExitCode::usage, fmt::format("cannot read config file {}: {}", in_quotes(path),
                                             std::strerror(errno)));
  text.resize(static_cast<size_t>(file.gcount()));
  return text;
}

}  // namespace

std::vector<IniEntry> read_ini(const std::string& path) {
  std::istringstream file(read_text(path));
  std::string text, prefix;
  std::vector<IniEntry> entries;
  std::map<std::string, int> seen;
  for (int number = 1; std::getline(file, text); ++number) {
    if (number == 1 && text.starts_with(kByteOrderMark)) text.erase(0, kByteOrderMark.size());
    const std::string_view line = trimmed(without_comment(text));
    if (line.empty()) continue;
    if (line.front() == '[') {
      prefix = section_prefix(line, path, number);
      continue;
    }
    const size_t equals = line.find('=');
    const std::string_view name = trimmed(line.substr(0, equals));
    if (equals == std::string_view::npos || name.empty())
      refuse(path, number,
             fmt::format("{} is neither [section] nor name = value", start_in_quotes(line)));
    IniEntry entry{prefix + std::string(name), std::string(trimmed(line.substr(equals + 1))),
                   number};
    const auto [first, is_new] = seen.emplace(entry.name, number);
    if (!is_new)
      refuse(
          path, number,
          fmt::format("{} was already set in line {}", start_in_quotes(entry.name), first->second));
    entries.push_back(std::move(entry));
  }
  return entries;
}

}  // namespace megadict
