#include "data/shard_set.h"

#include <fmt/format.h>

#include <algorithm>

#include "io/file.h"

namespace megadict {

namespace {

constexpr int64_t kShardBytes = int64_t{1} << 30;

}  // namespace

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
