#include "io/staged_folder.h"

#include <fmt/format.h>
#include <stdlib.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "base/log.h"
#include "io/file.h"
#include "io/output_path.h"

namespace megadict {

namespace fs = std::filesystem;

namespace {

std::string without_trailing_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

// What killed commands left beside `path`, which nobody else removes.
void name_leftovers(const std::string& path, const std::string& own) {
  for (const std::string& left : glob_files(path + ".tmp-*"))
    if (left != own)
      note(fmt::format("note: '{}' may be left from a command that was killed", left));
}

}  // namespace

StagedFolder::StagedFolder(const std::string& final_path)
    : final_path_(without_trailing_slash(final_path)) {
  if (final_path_.empty()) fail(ExitCode::usage, "no folder to write to", "--out DIR");
  std::error_code ignored;
  const bool usable = fs::is_directory(final_path_, ignored) && fs::is_empty(final_path_, ignored);
  if (fs::exists(final_path_, ignored) && !usable)
    fail(ExitCode::usage, fmt::format("'{}' exists and is not an empty folder", final_path_),
         "name a new folder, or remove it first");
  refuse_output_folder(final_path_);
  // A name of its own: process numbers repeat, and one that was killed may have left a folder.
  make_folders(parent_folder(final_path_));
  path_ = final_path_ + ".tmp-XXXXXX";
  if (::mkdtemp(path_.data()) == nullptr)
    fail(ExitCode::error, fmt::format("cannot write '{}': {}", final_path_, std::strerror(errno)));
  fs::permissions(path_, fs::perms(0755));
  name_leftovers(final_path_, path_);
}

StagedFolder::~StagedFolder() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(path_, ignored);
}

void StagedFolder::commit() {
  sync_folder(path_);
  rename_durably(path_, final_path_);
  committed_ = true;
}

}  // namespace megadict
