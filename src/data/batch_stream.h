// Two threads per rank: one reads and verifies chunks ahead (data/chunk_fetcher.h), one picks this
// rank's own part of the micro-batches out of them, in the data's own element type, into a bounded
// queue. No communication happens here: ranks of a feature row gather their parts afterwards.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/buffer_view.h"
#include "data/batch_plan.h"
#include "data/byte_pool.h"

namespace megadict {

// All of a micro-batch but its rows.
struct MicroBatchFacts {
  int64_t step = 0;
  int64_t micro = 0;
  bool last_of_step = false;
  int64_t batch_rows = 0;  // global rows of the whole step's batch
  int64_t rows = 0;        // global rows of this micro-batch
  RowPart part;
  DType dtype = DType::f32;
};

struct MicroBatch : MicroBatchFacts {
  Bytes data;                    // [slot, width] of dtype, padding rows zero
  std::vector<int64_t> row_ids;  // global ids of the owned real rows
};

class BatchStream {
 public:
  // Streams steps [first_step, plan.steps()) for one rank of the mesh. Keeps references to index
  // and plan.
  BatchStream(const ShardIndex& index, const BatchPlan& plan, int data_size, int feature_size,
              int data_index, int feature_index, int64_t first_step, int queue);
  ~BatchStream();

  // The next micro-batch; waits for the reader. An error of the reader (bad data: exit 3, naming
  // file and row) is thrown here. Non-finite rows are refused by the reader.
  MicroBatch next();
  double wait_seconds() const;  // total time next() has waited

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Reads any global rows (sorted or not) as float into `out` [rows.size(), width].
void read_rows(const ShardIndex& index, const std::vector<int64_t>& rows, float* out);

}  // namespace megadict
