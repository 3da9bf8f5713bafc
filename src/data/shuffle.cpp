#include "data/shuffle.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "base/philox.h"
#include "base/progress.h"
#include "data/row_reader.h"
#include "data/shard_file.h"
#include "data/shard_set.h"
#include "io/file.h"
#include "io/staged_folder.h"

namespace megadict {

namespace fs = std::filesystem;

namespace {

// What travels with a row through a bucket file, in front of its bytes.
struct RowTag {
  uint64_t key = 0;
  int64_t row = 0;  // global id in the source; decides between equal keys
  uint32_t tokens = 0, position = 0, document = 0, unused = 0;
};
static_assert(sizeof(RowTag) == 32);

// Which of the optional columns every shard has.
struct ColumnSet {
  bool tokens = true, position = true, document = true;
  explicit ColumnSet(const ShardIndex& index) {
    for (const ShardInfo& shard : index.shards()) {
      tokens = tokens && shard.has_tokens;
      position = position && shard.has_position;
      document = document && shard.has_document;
    }
  }
};

// Rows whose keys fall into one interval, written through a small buffer.
class Bucket {
 public:
  explicit Bucket(std::string path) : path_(std::move(path)) { flush(); }

  void add(const RowTag& tag, const std::byte* row, size_t row_bytes) {
    const auto* bytes = reinterpret_cast<const std::byte*>(&tag);
    buffer_.insert(buffer_.end(), bytes, bytes + sizeof(tag));
    buffer_.insert(buffer_.end(), row, row + row_bytes);
    if (buffer_.size() >= kBufferBytes) flush();
  }
  // Everything in it, and the file is gone.
  std::vector<std::byte> take() {
    flush();
    buffer_ = {};
    std::vector<std::byte> content(static_cast<size_t>(file_size(path_)));
    RandomAccessFile(path_).read(0, content.data(), content.size());
    remove_file(path_);
    return content;
  }

 private:
  static constexpr size_t kBufferBytes = 64 << 10;

  // Opened each time, because there may be more buckets than files that can be open.
  void flush() {
    const int descriptor = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (descriptor < 0)
      fail(ExitCode::error, fmt::format("cannot write '{}': {}", path_, std::strerror(errno)));
    try {
      write_fully(descriptor, buffer_.data(), buffer_.size(), path_);
    } catch (...) {
      ::close(descriptor);
      throw;
    }
    ::close(descriptor);
    buffer_.clear();
  }
  std::string path_;
  std::vector<std::byte> buffer_;
};

class Shuffler {
 public:
  Shuffler(const ShardIndex& index, const ShuffleOptions& options, const std::string& folder)
      : index_(index),
        columns_(index),
        rng_{options.seed, Purpose::shuffle, 0},
        row_bytes_(static_cast<size_t>(index.width()) * size_of(index.facts().dtype)) {
    // A bucket and what sorting it needs take half the memory; key intervals hold about equal
    // numbers of rows.
    const double bytes = static_cast<double>(index.rows()) * static_cast<double>(record_bytes());
    const double budget = static_cast<double>(options.memory_mib) * (1 << 20) / 2;
    const auto wanted = static_cast<int64_t>(bytes / budget) + 1;
    if (wanted > kMaxBuckets)
      fail(
          ExitCode::usage,
          fmt::format("memory_mib is {}, too little for {} rows", options.memory_mib, index.rows()),
          fmt::format("{} or more", options.memory_mib * wanted / kMaxBuckets + 1));
    bucket_count_ = wanted;
    scratch_ = folder + "/scratch";
    make_folders(scratch_);
  }

  void run(ShardSetWriter& writer) {
    // Every row is read and spread, then sorted and written.
    Progress shown("shuffle", 2 * index_.rows(), "rows");
    std::vector<Bucket> buckets = scatter(shown);
    for (Bucket& bucket : buckets) {
      write_sorted(bucket.take(), writer);
      shown.at(index_.rows() + writer.rows());
    }
    remove_file(scratch_);
  }

 private:
  static constexpr int64_t kMaxBuckets = 4096;

  size_t record_bytes() const { return sizeof(RowTag) + row_bytes_; }

  std::vector<Bucket> scatter(Progress& shown) {
    std::vector<Bucket> buckets;
    for (int64_t b = 0; b < bucket_count_; ++b)
      buckets.emplace_back(fmt::format("{}/{:04}", scratch_, b));
    for (const ShardInfo& shard : index_.shards()) scatter(shard, buckets, shown);
    return buckets;
  }

  void scatter(const ShardInfo& shard, std::vector<Bucket>& buckets, Progress& shown) {
    const ShardFile file = ShardFile::open(shard.path);
    std::vector<std::byte> rows(file.stored_bytes());
    for (int64_t c = 0; c < file.chunks(); ++c) {
      const Range range = file.chunk(c);
      file.read_chunk(c, rows.data());
      check_finite(index_, shard.rows.begin + range.begin, range.size(), rows.data());
      const auto column = [&](bool wanted, const char* name) {
        std::vector<uint32_t> values(static_cast<size_t>(range.size()));
        if (wanted) file.read_column(name, range, view_of(values.data(), range.size()));
        return values;
      };
      const auto tokens = column(columns_.tokens, "tokens");
      const auto position = column(columns_.position, "position");
      const auto document = column(columns_.document, "document");
      for (int64_t i = 0; i < range.size(); ++i) {
        const auto at = static_cast<size_t>(i);
        RowTag tag;
        tag.row = shard.rows.begin + range.begin + i;
        tag.key = rng_.bits64(static_cast<uint64_t>(tag.row));
        tag.tokens = tokens[at];
        tag.position = position[at];
        tag.document = document[at];
        const auto bucket = static_cast<size_t>(
            (static_cast<unsigned __int128>(tag.key) * static_cast<uint64_t>(bucket_count_)) >> 64);
        buckets[bucket].add(tag, rows.data() + at * row_bytes_, row_bytes_);
      }
      shown.at(shard.rows.begin + range.end);
    }
  }

  void write_sorted(const std::vector<std::byte>& records, ShardSetWriter& writer) {
    struct Place {
      RowTag tag;
      const std::byte* row;
    };
    std::vector<Place> places(records.size() / record_bytes());
    for (size_t i = 0; i < places.size(); ++i) {
      const std::byte* record = records.data() + i * record_bytes();
      std::memcpy(&places[i].tag, record, sizeof(RowTag));
      places[i].row = record + sizeof(RowTag);
    }
    std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) {
      return std::pair(a.tag.key, a.tag.row) < std::pair(b.tag.key, b.tag.row);
    });
    for (const Place& place : places)
      writer.append({place.row, 1, columns_.tokens ? &place.tag.tokens : nullptr,
                     columns_.position ? &place.tag.position : nullptr,
                     columns_.document ? &place.tag.document : nullptr});
  }

  const ShardIndex& index_;
  ColumnSet columns_;
  Rng rng_;
  size_t row_bytes_;
  int64_t bucket_count_ = 1;
  std::string scratch_;
};

void copy_beside(const std::string& from, const std::string& to) {
  for (const char* name : {"eval", "truth.safetensors"}) {
    std::error_code error;
    if (!fs::exists(from + "/" + name, error)) continue;
    fs::copy(from + "/" + name, to + "/" + name, fs::copy_options::recursive, error);
    if (error)
      fail(ExitCode::error, fmt::format("cannot write '{}/{}': {}", to, name, error.message()));
  }
}

}  // namespace

int64_t shuffle_data_set(const ShuffleOptions& options) {
  if (options.memory_mib < 1)
    fail(ExitCode::usage, fmt::format("memory_mib is {}", options.memory_mib), "1 or more");
  const ShardIndex index = ShardIndex::open(options.from);
  StagedFolder folder(options.out);
  ShardSetWriter writer(folder.path(), index.facts());
  Shuffler(index, options, folder.path()).run(writer);
  writer.finish();
  copy_beside(options.from, folder.path());
  folder.commit();
  return writer.rows();
}

}  // namespace megadict
