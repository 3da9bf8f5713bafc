// Rows of a data set by their global ids, outside the training stream: samples for initialisation
// and statistics, evaluation in order, checks.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/shard_index.h"

namespace megadict {

// Keeps the last chunk and some files open, so that reading a data set in pieces reads every chunk
// once. For one thread; keeps a reference to the index. Rows that are not finite are refused (exit
// 3, naming file and row).
class RowReader {
 public:
  explicit RowReader(const ShardIndex& index);
  ~RowReader();

  // [rows.size(), width]; any order, repetitions allowed.
  void read(const std::vector<int64_t>& rows, float* out);
  void read(Range rows, float* out);
  // The same in the data set's own element type.
  void read_raw(Range rows, std::byte* out);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The index of the chunk that holds a global row.
int32_t chunk_of(const ShardIndex& index, int64_t row);

// Exit 3, naming file and row, when one of the rows is not finite. `first_row` is global.
void check_finite(const ShardIndex& index, int64_t first_row, int64_t count, const void* rows);

// Norms of some rows: the stored column where a shard has one, else computed from the rows.
std::vector<float> row_norms(const ShardIndex& index, Range rows);

// tokens, position or document of some rows. Exit 3 where a shard has no such column.
std::vector<uint32_t> read_column(const ShardIndex& index, const std::string& column, Range rows);

}  // namespace megadict
