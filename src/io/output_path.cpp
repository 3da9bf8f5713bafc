#include "io/output_path.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <string_view>

#include "base/error.h"
#include "io/file.h"

namespace megadict {

namespace {

// Also a link that leads nowhere: no folder can be made in its place.
bool is_there(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(std::filesystem::symlink_status(path, ignored));
}

[[noreturn]] void refuse(const std::string& path, const std::string& why, const std::string& hint) {
  fail(ExitCode::usage, fmt::format("cannot write '{}': {}", path, why), hint);
}

void refuse_closed(const std::string& path, const std::string& folder) {
  if (!folder_exists(folder)) refuse(path, fmt::format("'{}' is no folder", folder), "another one");
  if (::access(folder.c_str(), W_OK | X_OK) != 0)
    refuse(path, fmt::format("'{}': {}", folder, std::strerror(errno)), "another folder");
  // A name that is too long, or goes in circles.
  if (::access(path.c_str(), F_OK) != 0 && errno != ENOENT)
    refuse(path, std::strerror(errno), "another name");
}

// What commands read and nothing of theirs may replace.
bool is_kept(const std::string& path) {
  static constexpr std::string_view kNames[] = {
      "config.json",   "cfg.json",           "state.json", "env.json",
      "metrics.jsonl", "communication.json", "ranks.txt"};
  static constexpr std::string_view kEndings[] = {".safetensors", ".pt", ".npz"};
  const std::string name = file_name(path);
  const auto ends = [&](std::string_view ending) { return name.ends_with(ending); };
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames) ||
         std::any_of(std::begin(kEndings), std::end(kEndings), ends);
}

}  // namespace

void refuse_output_file(const std::string& path) {
  const std::string folder = parent_folder(path);
  if (folder_exists(path)) refuse(path, "it is a folder", "name a file");
  if (!is_there(folder)) refuse(path, fmt::format("there is no folder '{}'", folder), "make it");
  refuse_closed(path, folder);
  if (file_exists(path) && is_kept(path))
    refuse(path, "it is a file of a run or a dictionary", "another name");
}

void refuse_output_folder(const std::string& path) {
  std::string there = path;
  while (!is_there(there) && there != parent_folder(there)) there = parent_folder(there);
  refuse_closed(path, there);
}

}  // namespace megadict
