// `megadict data info` and `megadict data verify`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/shard_index.h"

namespace megadict {

// A table of the shards of a folder or glob, its totals, its norms and its evaluation part, as
// lines. Shards that cannot be read or do not belong to the others are part of the table, not an
// error.
std::vector<std::string> data_info(const std::string& path_or_glob);

struct VerifyReport {
  int64_t shards = 0, chunks = 0, rows = 0, bytes = 0;
  std::vector<std::string> problems;  // one line each: shard, chunk and rows; at most 100
};

// Reads everything, the folder's eval/ too: every chunk against its checksums, every row for values
// that are not finite, the norm column against the rows. Goes on after a problem.
VerifyReport verify_data_set(const std::string& path_or_glob);

}  // namespace megadict
