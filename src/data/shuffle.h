// `megadict data shuffle`: the rows of a data set in one global random order.
#pragma once

#include <cstdint>
#include <string>

namespace megadict {

struct ShuffleOptions {
  std::string from;  // folder or glob of shards
  std::string out;   // folder; must not exist or be empty
  uint64_t seed = 0;
  int64_t memory_mib = 1024;  // about; temporary files beside OUT take as much disk as the data
};

// Row r goes where its random number Philox(seed, shuffle, r) falls among all rows' numbers, so the
// result depends on the seed and the rows alone, not on the memory. FROM/eval and
// FROM/truth.safetensors are copied as they are. Returns the number of rows.
int64_t shuffle_data_set(const ShuffleOptions& options);

}  // namespace megadict
