#include "data/stage.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <set>
#include <thread>

#include "base/clock.h"
#include "base/error.h"
#include "data/rows.h"
#include "data/shard_file.h"
#include "io/output_path.h"

namespace megadict {

namespace {

constexpr int64_t kBlock = 8 << 20;

std::string set_folder_of(const ShardIndex& index, const std::string& folder) {
  return folder + "/" + index.fingerprint();
}

double gib(int64_t bytes) {
  return static_cast<double>(bytes) / (1 << 30);
}

}  // namespace

std::vector<int32_t> shards_needed(const ShardIndex& index, const BatchPlan& plan) {
  std::set<int32_t> found;
  const int64_t step = plan.steps() - 1;
  const WindowId last = plan.windows(step, plan.micro_batches(step) - 1).second;
  for (WindowId at = plan.windows(0, 0).first; at <= last; at = plan.next(at)) {
    for (int32_t chunk : plan.window_chunks(at))
      found.insert(index.chunks()[static_cast<size_t>(chunk)].shard);
    if (found.size() == index.shards().size()) break;
  }
  return {found.begin(), found.end()};
}

std::string staged_path(const ShardIndex& index, int32_t shard, const std::string& folder) {
  // Shards that a pattern found in several folders may bear the same name.
  return fmt::format("{}/{:05d}/{}", set_folder_of(index, folder), shard,
                     file_name(index.shards()[static_cast<size_t>(shard)].path));
}

ShardIndex staged_index(const ShardIndex& index, const std::vector<int32_t>& shards,
                        const std::string& folder) {
  ShardIndex staged = index;
  for (int32_t shard : shards) staged.move_shard(shard, staged_path(index, shard, folder));
  return staged;
}

struct ShardStage::Copy {
  Copy(const std::string& from_path, const std::string& to_path) : from(from_path), to(to_path) {}
  RandomAccessFile from;
  AtomicFile to;
  int64_t done = 0;
};

ShardStage::ShardStage(const ShardIndex& index, std::vector<int32_t> shards,
                       const std::string& folder)
    : index_(index),
      shards_(std::move(shards)),
      folder_(folder),
      set_folder_(set_folder_of(index, folder)) {
  refuse_output_folder(set_folder_);
  make_folders(set_folder_);
  find_missing();
  std::error_code error;
  const auto space = std::filesystem::space(folder_, error);
  const auto free = static_cast<int64_t>(space.available);
  if (!error && bytes_missing() > free)
    fail(ExitCode::error,
         fmt::format("data.stage_dir '{}' has {:.2f} GiB free, the {} shards that are not there "
                     "yet need {:.2f} GiB",
                     folder_, gib(free), missing_.size(), gib(bytes_missing())),
         "another disk, or data.stage_dir left empty");
}

ShardStage::~ShardStage() = default;

// As large as the shard, with its rows and its chunks' checksums; the chunks themselves are
// verified whenever they are read.
bool ShardStage::is_staged(int32_t shard) const {
  const ShardInfo& info = index_.shards()[static_cast<size_t>(shard)];
  const std::string path = staged_path(index_, shard, folder_);
  if (!file_exists(path) || file_size(path) != file_size(info.path)) return false;
  try {
    const ShardFile file = ShardFile::open(path);
    return file.rows() == info.rows.size() && checksum_of(file) == info.checksum;
  } catch (const Error&) {
    return false;  // copied again
  }
}

void ShardStage::find_missing() {
  missing_.clear();
  for (int32_t shard : shards_)
    if (!is_staged(shard)) missing_.push_back(shard);
  std::reverse(missing_.begin(), missing_.end());
}

int64_t ShardStage::bytes_missing() const {
  int64_t bytes = under_way_ ? -under_way_->done : 0;
  for (int32_t shard : missing_)
    bytes += file_size(index_.shards()[static_cast<size_t>(shard)].path);
  return bytes;
}

void ShardStage::copy(double seconds) {
  if (missing_.empty()) return;
  if (!lock_.held()) {
    if (!lock_.take(set_folder_)) {
      std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
      return;
    }
    // What a killed copy left, and what another job has copied in the meantime.
    for (const std::string& left : glob_files(set_folder_ + "/*/*.tmp-*")) remove_file(left);
    find_missing();
  }
  const double end = seconds_now() + seconds;
  while (!missing_.empty() && seconds_now() < end) copy_block();
  if (missing_.empty()) lock_ = FolderLock();
}

void ShardStage::copy_block() {
  const int32_t shard = missing_.back();
  const std::string from = index_.shards()[static_cast<size_t>(shard)].path,
                    to = staged_path(index_, shard, folder_);
  if (!under_way_) {
    make_folders(parent_folder(to));
    under_way_ = std::make_unique<Copy>(from, to);
  }
  Copy& copy = *under_way_;
  std::vector<std::byte> block(static_cast<size_t>(std::min(kBlock, copy.from.size() - copy.done)));
  copy.from.read(copy.done, block.data(), block.size());
  copy.to.write(block.data(), block.size());
  copy.done += static_cast<int64_t>(block.size());
  if (copy.done < copy.from.size()) return;
  copy.to.commit();
  under_way_.reset();
  if (!is_staged(shard))
    fail(ExitCode::bad_data,
         fmt::format("'{}' was copied to '{}', which is another shard now", from, to),
         "start when the data set is complete; megadict data verify checks it");
  missing_.pop_back();
}

}  // namespace megadict
