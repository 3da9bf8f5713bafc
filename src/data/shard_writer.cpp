#include "data/shard_writer.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/version.h"
#include "data/rows.h"
#include "io/file.h"
#include "io/fletcher32.h"

namespace megadict {

namespace {

constexpr int64_t kChunkBytes = 512 << 10;
constexpr int64_t kColumnChunkRows = 1 << 16;

}  // namespace

int64_t default_chunk_rows(int64_t row_bytes) {
  return std::max<int64_t>(1, kChunkBytes / row_bytes);
}

ShardWriter::ShardWriter(const std::string& path, const DatasetFacts& facts, int64_t chunk_rows)
    : path_(path),
      temporary_(fmt::format("{}.tmp-{}", path, ::getpid())),
      facts_(facts),
      row_bytes_(facts.width * static_cast<int64_t>(size_of(facts.dtype))) {
  chunk_rows_ = chunk_rows > 0 ? chunk_rows : default_chunk_rows(row_bytes_);
  file_ = Hdf5File::create(temporary_, path_);
}

ShardWriter::~ShardWriter() {
  if (!file_) return;
  file_.reset();
  ::unlink(temporary_.c_str());
}

void ShardWriter::append(const ShardRows& rows) {
  const uint32_t* given[3] = {rows.tokens, rows.position, rows.document};
  for (int c = 0; c < 3; ++c) {
    if (rows_ > 0 && columns_[c].used != (given[c] != nullptr))
      fail(ExitCode::error, fmt::format("'{}': the column '{}' is given for some rows only", path_,
                                        columns_[c].name));
    columns_[c].used = given[c] != nullptr;
  }
  const auto* next = static_cast<const std::byte*>(rows.activations);
  for (int64_t i = 0; i < rows.count; ++i, next += row_bytes_) {
    const float norm = row_norm(next, facts_.dtype, facts_.width);
    if (!std::isfinite(norm))
      fail(ExitCode::bad_data,
           fmt::format("cannot write '{}': row {} holds a value that is not finite, or its norm "
                       "does not fit float32",
                       path_, rows_));
    norms_.push_back(norm);
    buffer_.insert(buffer_.end(), next, next + row_bytes_);
    for (int c = 0; c < 3; ++c)
      if (given[c] != nullptr) columns_[c].values.push_back(given[c][i]);
    ++rows_;
    if (static_cast<int64_t>(norms_.size()) == chunk_rows_) write_buffered();
  }
}

void ShardWriter::create_datasets(int64_t chunk_rows) {
  // A shard smaller than a chunk gets columns of its own length.
  const int64_t column_rows = chunk_rows < chunk_rows_ ? chunk_rows : kColumnChunkRows;
  chunk_rows_ = chunk_rows;
  file_->create_dataset("activations", {0, facts_.width}, facts_.dtype, chunk_rows, true);
  file_->create_dataset("norm", {0}, DType::f32, column_rows, true);
  for (const Column& column : columns_)
    if (column.used) file_->create_dataset(column.name, {0}, DType::u32, column_rows, true);
}

// One chunk, the last one padded with zeros; the checksum is our own, so that no filter runs.
void ShardWriter::write_buffered() {
  const auto count = static_cast<int64_t>(norms_.size());
  if (written_ == 0) create_datasets(std::min(chunk_rows_, count));
  buffer_.resize(static_cast<size_t>(chunk_rows_ * row_bytes_), std::byte{0});
  const uint32_t checksum = fletcher32(buffer_.data(), buffer_.size());
  const auto* bytes = reinterpret_cast<const std::byte*>(&checksum);
  buffer_.insert(buffer_.end(), bytes, bytes + sizeof(checksum));
  file_->extend("activations", written_ + count);
  file_->write_chunk("activations", written_, buffer_);
  file_->append_rows("norm", view_of(norms_.data(), count));
  for (Column& column : columns_) {
    if (column.used) file_->append_rows(column.name, view_of(column.values.data(), count));
    column.values.clear();
  }
  checksums_.push_back(checksum);
  written_ += count;
  buffer_.clear();
  norms_.clear();
}

void ShardWriter::finish() {
  if (rows_ == 0) fail(ExitCode::bad_data, fmt::format("cannot write '{}': no rows", path_));
  if (!norms_.empty()) write_buffered();
  const auto chunks = static_cast<int64_t>(checksums_.size());
  file_->create_dataset("chunk_checksum", {chunks}, DType::u32);
  file_->write_rows("chunk_checksum", {0, chunks}, view_of(checksums_.data(), chunks));
  file_->set("/", "megadict_version", std::string(version()));
  file_->set("/", "model", facts_.model);
  file_->set("/", "hook", facts_.hook);
  file_->set("/", "layer", facts_.layer);
  file_->set("/", "tokenizer", facts_.tokenizer);
  file_->set("/", "d_in", facts_.width);
  file_->set("/", "dtype", std::string(name_of(facts_.dtype)));
  file_->set("/", "rows", rows_);
  file_->close();
  sync_file(temporary_);
  rename_durably(temporary_, path_);
  file_.reset();
}

}  // namespace megadict
