#include "data/shard_set.h"

#include <fmt/format.h>
#include <stdlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "base/log.h"
#include "io/file.h"

namespace megadict {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kShardBytes = int64_t{1} << 30;

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
  if (fs::exists(final_path_, ignored) && !fs::is_empty(final_path_, ignored))
    fail(ExitCode::usage, fmt::format("'{}' exists and is not an empty folder", final_path_),
         "another --out, or remove it first");
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
  rename_durably(path_, final_path_);
  committed_ = true;
}

ShardSetWriter::ShardSetWriter(const std::string& folder, const DatasetFacts& facts,
                               int64_t shard_rows)
    : folder_(folder), facts_(facts), shard_rows_(shard_rows) {
  const int64_t row_bytes = facts.width * static_cast<int64_t>(size_of(facts.dtype));
  const int64_t chunk_rows = default_chunk_rows(row_bytes);
  if (shard_rows_ == 0)  // whole chunks, so that only the last shard has a ragged one
    shard_rows_ = std::max<int64_t>(1, kShardBytes / row_bytes / chunk_rows) * chunk_rows;
}

void ShardSetWriter::append(const ShardRows& rows) {
  const int64_t row_bytes = facts_.width * static_cast<int64_t>(size_of(facts_.dtype));
  for (int64_t done = 0; done < rows.count;) {
    if (!current_) {
      make_folders(folder_);
      current_ = std::make_unique<ShardWriter>(fmt::format("{}/shard_{:06}.h5", folder_, shards_++),
                                               facts_);
    }
    const int64_t count = std::min(rows.count - done, shard_rows_ - current_->rows());
    const auto at = [&](const uint32_t* column) { return column ? column + done : nullptr; };
    current_->append({static_cast<const std::byte*>(rows.activations) + done * row_bytes, count,
                      at(rows.tokens), at(rows.position), at(rows.document)});
    done += count;
    rows_ += count;
    if (current_->rows() == shard_rows_) {
      current_->finish();
      current_.reset();
    }
  }
}

void ShardSetWriter::finish() {
  if (current_) current_->finish();
  current_.reset();
}

}  // namespace megadict
