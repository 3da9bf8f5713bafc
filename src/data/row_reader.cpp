#include "data/row_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/error.h"
#include "data/batch_stream.h"
#include "data/rows.h"
#include "data/shard_file.h"

namespace megadict {

int32_t chunk_of(const ShardIndex& index, int64_t row) {
  const std::vector<Chunk>& chunks = index.chunks();
  const auto after =
      std::upper_bound(chunks.begin(), chunks.end(), row,
                       [](int64_t value, const Chunk& chunk) { return value < chunk.rows.begin; });
  return static_cast<int32_t>(after - chunks.begin()) - 1;
}

void check_finite(const ShardIndex& index, int64_t first_row, int64_t count, const void* rows) {
  const int64_t at = first_non_finite(rows, index.facts().dtype, count * index.width());
  if (at < 0) return;
  const int64_t row = first_row + at / index.width();
  const auto& chunk = index.chunks()[static_cast<size_t>(chunk_of(index, row))];
  const ShardInfo& shard = index.shards()[static_cast<size_t>(chunk.shard)];
  fail(ExitCode::bad_data,
       fmt::format("cannot use '{}': row {} holds a value that is not finite (column {})",
                   shard.path, row - shard.rows.begin, at % index.width()),
       "import the data again without such rows");
}

struct RowReader::State {
  const ShardIndex& index;
  ShardPool pool;
  int32_t chunk = -1;  // the one in `rows`
  std::vector<std::byte> rows;
  int64_t row_bytes;

  explicit State(const ShardIndex& shards)
      : index(shards),
        pool(shards),
        row_bytes(shards.width() * static_cast<int64_t>(size_of(shards.facts().dtype))) {}

  const std::byte* row(int64_t id) {
    const bool here = chunk >= 0 && index.chunks()[static_cast<size_t>(chunk)].rows.contains(id);
    if (!here) {
      if (id < 0 || id >= index.rows())
        fail(ExitCode::error, fmt::format("row {} of a data set of {}", id, index.rows()));
      chunk = -1;  // stays so when reading throws
      const int32_t wanted = chunk_of(index, id);
      rows.resize(largest_chunk_bytes(index));
      pool.read(index.chunks()[static_cast<size_t>(wanted)], rows.data());
      chunk = wanted;
    }
    const int64_t first = index.chunks()[static_cast<size_t>(chunk)].rows.begin;
    return rows.data() + (id - first) * row_bytes;
  }
};

RowReader::RowReader(const ShardIndex& index) : state_(std::make_unique<State>(index)) {}
RowReader::~RowReader() = default;

void RowReader::read(const std::vector<int64_t>& rows, float* out) {
  std::vector<size_t> order(rows.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return rows[a] < rows[b]; });
  const int64_t width = state_->index.width();
  for (size_t i : order) {
    const std::byte* row = state_->row(rows[i]);
    check_finite(state_->index, rows[i], 1, row);
    convert_to_float(row, state_->index.facts().dtype, width,
                     out + static_cast<int64_t>(i) * width);
  }
}

void RowReader::read(Range rows, float* out) {
  std::vector<int64_t> ids(static_cast<size_t>(rows.size()));
  std::iota(ids.begin(), ids.end(), rows.begin);
  read(ids, out);
}

void RowReader::read_raw(Range rows, std::byte* out) {
  for (int64_t id = rows.begin; id < rows.end; ++id, out += state_->row_bytes) {
    const std::byte* row = state_->row(id);
    check_finite(state_->index, id, 1, row);
    std::memcpy(out, row, static_cast<size_t>(state_->row_bytes));
  }
}

void read_rows(const ShardIndex& index, const std::vector<int64_t>& rows, float* out) {
  RowReader(index).read(rows, out);
}

namespace {

void compute_norms(const ShardIndex& index, Range rows, float* norms) {
  RowReader reader(index);
  const DType dtype = index.facts().dtype;
  std::vector<std::byte> row(static_cast<size_t>(index.width()) * size_of(dtype));
  for (int64_t id = rows.begin; id < rows.end; ++id) {
    reader.read_raw({id, id + 1}, row.data());
    *norms++ = row_norm(row.data(), dtype, index.width());
  }
}

}  // namespace

std::vector<float> row_norms(const ShardIndex& index, Range rows) {
  std::vector<float> norms(static_cast<size_t>(rows.size()));
  for (const ShardInfo& shard : index.shards()) {
    const Range wanted = intersect(shard.rows, rows);
    if (wanted.empty()) continue;
    float* to = norms.data() + (wanted.begin - rows.begin);
    if (!shard.has_norm) {
      compute_norms(index, wanted, to);
      continue;
    }
    const int64_t first = wanted.begin - shard.rows.begin;
    ShardFile::open(shard.path)
        .read_column("norm", {first, first + wanted.size()}, view_of(to, wanted.size()));
    const int64_t bad = first_non_finite(to, DType::f32, wanted.size());
    if (bad >= 0)
      fail(ExitCode::bad_data, fmt::format("cannot use '{}': the norm of row {} is not finite",
                                           shard.path, first + bad));
  }
  return norms;
}

std::vector<uint32_t> read_column(const ShardIndex& index, const std::string& column, Range rows) {
  std::vector<uint32_t> values(static_cast<size_t>(rows.size()));
  for (const ShardInfo& shard : index.shards()) {
    const Range wanted = intersect(shard.rows, rows);
    if (wanted.empty()) continue;
    const ShardFile file = ShardFile::open(shard.path);
    if (!file.has(column))
      fail(ExitCode::bad_data, fmt::format("'{}' has no column '{}'", shard.path, column));
    const int64_t first = wanted.begin - shard.rows.begin;
    file.read_column(column, {first, first + wanted.size()},
                     view_of(values.data() + (wanted.begin - rows.begin), wanted.size()));
  }
  return values;
}

}  // namespace megadict
