// What each latent of a dictionary does on a data set: how often and how strongly it fires, on
// which rows most, and which other latent's decoder row is nearest.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "comm/mesh.h"
#include "data/shard_index.h"
#include "model/dictionary.h"
#include "model/forward.h"

namespace megadict {

// A code of some latent: the larger value comes first, of equal ones the earlier row.
struct TopCode {
  float value = 0;
  int64_t row = -1;  // global; -1 = none
  bool before(const TopCode& other) const {
    return value != other.value ? value > other.value : row < other.row;
  }
};

// Of a range of latents.
struct LatentSums {
  std::vector<int64_t> fired;
  std::vector<double> sum;   // of the values
  std::vector<TopCode> top;  // [latents, top], best first
};

class LatentStatistics {
 public:
  LatentStatistics(Range latents, int64_t top);

  // Codes of a data row's rows: first_row + i in the data set.
  void add(const Codes& codes, int64_t first_row, int64_t rows);
  // Over the whole mesh's rows, this rank's latents. Collective over data.
  LatentSums reduce(Communicator& data) const;

  int64_t top() const { return top_; }
  Range latents() const { return latents_; }

 private:
  Range latents_;
  int64_t top_;
  LatentSums sums_;
};

struct NearestRow {
  int64_t latent = -1;
  float cosine = 0;
};

// For each row of this rank its nearest other decoder row by cosine, of equal ones the first.
// Collective over feature.
std::vector<NearestRow> nearest_decoder_rows(const Mesh& mesh, const Dictionary& dictionary);

struct LatentFileFacts {
  std::string dictionary, data;
  int64_t rows = 0;
  double scale = 1;        // values are divided by it: z of raw rows
  bool neighbours = true;  // n^2 d operations
};

// Writes one HDF5 file: fired i64 [n], frequency, mean (over the rows it fired on), max,
// decoder_norm, nearest_cosine f32 [n], nearest i64 [n], top_rows i64 [n, top] (-1 = none),
// top_values f32 [n, top], and of the columns that all shards have top_tokens, top_position,
// top_document u32 [n, top]. Collective over the mesh; rank 0 writes.
void write_latent_statistics(const std::string& path, const Mesh& mesh,
                             const Dictionary& dictionary, const LatentStatistics& statistics,
                             const ShardIndex& data, const LatentFileFacts& facts);

}  // namespace megadict
