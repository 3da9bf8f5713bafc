#include "data/shard_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "data/rows.h"
#include "io/file.h"
#include "io/fletcher32.h"

namespace megadict {

namespace {

constexpr const char* kActivations = "activations";
constexpr size_t kChecksumBytes = 4;
// How far a chunk may lie from its guessed place and still be announced whole; and how many chunks
// between known places are left to guess in any case.
constexpr int64_t kSlack = 16 << 10, kFewestChunks = 4;
// Of a file that lies so unevenly that it takes more, nothing is announced.
constexpr size_t kMostPlaces = 64;

[[noreturn]] void refuse(const std::string& path, const std::string& why,
                         const std::string& hint = "") {
  fail(ExitCode::bad_data, fmt::format("cannot read '{}': {}", path, why), hint);
}

// `path` becomes a shard by import when it is some other HDF5 file.
std::string import_hint(const std::string& path) {
  return fmt::format("megadict data import --from {} --out DIR", path);
}

void check_layout(const Hdf5File& file, const Hdf5Dataset& data) {
  const std::string& path = file.path();
  if (data.shape.size() != 2)
    refuse(path, fmt::format("'activations' has {} dimensions instead of 2", data.shape.size()),
           import_hint(path));
  if (data.shape[0] == 0 || data.shape[1] == 0)
    refuse(path, fmt::format("'activations' is [{},{}]: no rows", data.shape[0], data.shape[1]));
  if (data.shape[1] > kMostWidth)
    refuse(path, fmt::format("rows of 'activations' are {} wide; allowed: 1 to {}", data.shape[1],
                             kMostWidth));
  const bool float_rows =
      data.dtype == DType::f32 || data.dtype == DType::f16 || data.dtype == DType::bf16;
  if (!float_rows || !data.little_endian)
    refuse(path,
           fmt::format("'activations' is {}{}; float32, float16 or uint16 with the attribute "
                       "dtype=bfloat16 are read",
                       data.little_endian ? "" : "big-endian ", name_of(data.dtype)),
           import_hint(path));
  if (data.chunk.empty() || !data.fletcher32)
    refuse(path, "'activations' has no checksums (chunks with the Fletcher-32 filter)",
           import_hint(path));
  if (data.other_filters)
    refuse(path, "'activations' is compressed or has another filter beside Fletcher-32",
           import_hint(path));
  if (data.chunk[1] != data.shape[1])
    refuse(path,
           fmt::format("the chunks of 'activations' are {} wide, its rows {}", data.chunk[1],
                       data.shape[1]),
           import_hint(path));
}

void check_attributes(const Hdf5File& file, const Hdf5Dataset& data) {
  const struct {
    const char* name;
    int64_t actual;
  } counts[] = {{"rows", data.shape[0]}, {"d_in", data.shape[1]}};
  for (const auto& count : counts) {
    const auto stated = file.integer("/", count.name);
    if (stated && *stated != count.actual)
      refuse(file.path(),
             fmt::format("its attribute {} says {}, 'activations' is [{},{}]: the file "
                         "is short or was changed",
                         count.name, *stated, data.shape[0], data.shape[1]));
  }
  const auto dtype = file.text("/", "dtype");
  if (dtype && *dtype != name_of(data.dtype))
    refuse(file.path(), fmt::format("its attribute dtype says {}, 'activations' is {}", *dtype,
                                    name_of(data.dtype)));
  for (const char* column : {"norm", "tokens", "position", "document"}) {
    if (!file.has(column)) continue;
    const Hdf5Dataset facts = file.describe(column);
    if (facts.shape != std::vector<int64_t>{data.shape[0]})
      refuse(file.path(), fmt::format("'{}' is [{}], 'activations' has {} rows", column,
                                      fmt::join(facts.shape, ","), data.shape[0]));
  }
}

}  // namespace

ShardFile ShardFile::open(const std::string& path) {
  ShardFile shard(Hdf5File::open(path));
  const Hdf5File& file = shard.file_;
  if (!file.has(kActivations))
    refuse(
        path,
        fmt::format("no dataset 'activations'; it holds {}", fmt::join(file.dataset_names(), ", ")),
        import_hint(path) + " --dataset NAME");
  const Hdf5Dataset data = file.describe(kActivations);
  check_layout(file, data);
  check_attributes(file, data);
  shard.rows_ = data.shape[0];
  shard.chunk_rows_ = data.chunk[0];
  shard.facts_ = {data.shape[1],
                  data.dtype,
                  file.text("/", "model").value_or(""),
                  file.text("/", "hook").value_or(""),
                  file.text("/", "tokenizer").value_or(""),
                  file.integer("/", "layer").value_or(-1)};
  if (file.has("chunk_checksum")) {
    const int64_t chunks = shard.chunks();
    if (file.describe("chunk_checksum").shape != std::vector<int64_t>{chunks})
      refuse(path, fmt::format("'chunk_checksum' does not hold {} numbers", chunks));
    shard.table_.resize(static_cast<size_t>(chunks));
    file.read_rows("chunk_checksum", {0, chunks}, view_of(shard.table_.data(), chunks));
  }
  return shard;
}

Range ShardFile::chunk(int64_t index) const {
  return {index * chunk_rows_, std::min(rows_, (index + 1) * chunk_rows_)};
}

size_t ShardFile::stored_bytes() const {
  return static_cast<size_t>(chunk_rows_ * row_bytes()) + kChecksumBytes;
}

void ShardFile::read_chunk(int64_t index, std::byte* to) const {
  const Range rows = chunk(index);
  const size_t payload = stored_bytes() - kChecksumBytes;
  file_.read_chunk(kActivations, rows.begin, {to, stored_bytes()});
  uint32_t stored = 0;
  std::memcpy(&stored, to + payload, kChecksumBytes);
  const bool listed = table_.empty() || table_[static_cast<size_t>(index)] == stored;
  if (!listed || fletcher32(to, payload) != stored)
    refuse(path(),
           fmt::format("chunk {} (rows {} to {}) does not match its checksum: the file is "
                       "corrupt",
                       index, rows.begin, rows.end),
           fmt::format("megadict data verify {}", parent_folder(path())));
}

ShardFile::Place ShardFile::place_of(int64_t index) const {
  return {index, file_.chunk_offset(kActivations, chunk(index).begin)};
}

// The places between two, both of which are there already, that are needed to guess the others.
void ShardFile::add_places(const Place& first, const Place& last,
                           std::vector<Place>& places) const {
  const int64_t count = last.chunk - first.chunk;
  const int64_t gaps = last.offset - first.offset - count * static_cast<int64_t>(stored_bytes());
  if (count <= kFewestChunks || std::abs(gaps) <= kSlack || places.size() > kMostPlaces) return;
  const Place middle = place_of(first.chunk + count / 2);
  add_places(first, middle, places);
  places.push_back(middle);
  add_places(middle, last, places);
}

void ShardFile::announce_chunk(int64_t index) {
  if (!map_) {
    std::vector<Place> known = {place_of(0)};
    const Place first = known[0], last = place_of(chunks() - 1);
    add_places(first, last, known);
    known.push_back(last);
    map_ = Map{RandomAccessFile(path()), std::move(known)};
  }
  const std::vector<Place>& places = map_->places;
  if (places.size() > kMostPlaces) return;
  const auto after =
      std::upper_bound(places.begin() + 1, places.end() - 1, index,
                       [](int64_t i, const Place& place) { return i < place.chunk; });
  const Place &from = *(after - 1), &to = *after;
  const int64_t steps = std::max<int64_t>(1, to.chunk - from.chunk);
  const int64_t about = from.offset + (to.offset - from.offset) / steps * (index - from.chunk);
  map_->file.announce(about - kSlack, static_cast<int64_t>(stored_bytes()) + 2 * kSlack);
}

void ShardFile::read_column(const std::string& column, Range rows, BufferView to) const {
  file_.read_rows(column, rows, to);
}

std::vector<uint32_t> ShardFile::chunk_checksums() const {
  if (!table_.empty()) return table_;
  std::vector<uint32_t> checksums(static_cast<size_t>(chunks()));
  const RandomAccessFile bytes(path());
  for (int64_t i = 0; i < chunks(); ++i) {
    const int64_t offset = file_.chunk_offset(kActivations, chunk(i).begin);
    bytes.read(offset + static_cast<int64_t>(stored_bytes() - kChecksumBytes),
               &checksums[static_cast<size_t>(i)], kChecksumBytes);
  }
  return checksums;
}

uint64_t checksum_of(const ShardFile& file) {
  const std::vector<uint32_t> checksums = file.chunk_checksums();
  return hash_bytes(checksums.data(), checksums.size() * sizeof(checksums[0]));
}

size_t largest_chunk_bytes(const ShardIndex& index) {
  const auto row_bytes = index.width() * static_cast<int64_t>(size_of(index.facts().dtype));
  int64_t rows = 0;
  for (const ShardInfo& shard : index.shards()) rows = std::max(rows, shard.chunk_rows);
  return static_cast<size_t>(rows * row_bytes) + kChecksumBytes;
}

ShardFile& ShardPool::shard(int32_t number) {
  const auto found = std::find_if(open_.begin(), open_.end(),
                                  [&](const Open& open) { return open.number == number; });
  if (found != open_.end()) {
    std::rotate(found, found + 1, open_.end());
    return open_.back().file;
  }
  const ShardInfo& info = index_.shards()[static_cast<size_t>(number)];
  ShardFile file = ShardFile::open(info.path);
  if (file.rows() != info.rows.size() || file.chunk_rows() != info.chunk_rows ||
      file.facts().width != index_.width() || file.facts().dtype != index_.facts().dtype)
    refuse(info.path, "it was replaced while it was in use");
  if (open_.size() == kMaxOpen) open_.erase(open_.begin());
  open_.push_back({number, std::move(file)});
  return open_.back().file;
}

int64_t ShardPool::number_of(const Chunk& chunk) const {
  const ShardInfo& info = index_.shards()[static_cast<size_t>(chunk.shard)];
  return (chunk.rows.begin - info.rows.begin) / info.chunk_rows;
}

void ShardPool::read(const Chunk& chunk, std::byte* to) {
  shard(chunk.shard).read_chunk(number_of(chunk), to);
}

void ShardPool::announce(const Chunk& chunk) {
  try {
    shard(chunk.shard).announce_chunk(number_of(chunk));
  } catch (const std::exception&) {
    return;  // only a hint: whoever reads the chunk says what is wrong
  }
}

}  // namespace megadict
