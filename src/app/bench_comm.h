// megadict bench comm: every collective over a range of sizes, its result compared with values that
// each rank computes by itself. Bandwidths as nccl-tests defines them.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "comm/mesh.h"

namespace megadict {

struct CommBench {
  int64_t least_bytes = 8, most_bytes = int64_t{32} << 20, factor = 4;
  double seconds = 0.1;  // of each line, about
  int repeats = 5;       // parts of them; the median counts
  std::string device = "cpu";
  MeshConfig mesh;
};

struct CommLine {
  std::string collective, axis;
  int ranks = 1;
  int64_t bytes = 0;     // of the full vector, on the rank where it is largest
  int64_t received = 0;  // of them, what a rank receives from others, at most
  int64_t calls = 0;     // timed
  double median_s = 0, least_s = 0, most_s = 0;  // of one call, on the slowest rank
  int64_t compared = 0, wrong = 0;               // elements on all ranks
  double algorithm_rate() const { return static_cast<double>(bytes) / median_s; }
  double bus_rate() const { return static_cast<double>(received) / median_s; }
};

struct CommReport {
  std::string mesh;
  std::vector<CommLine> lines;
};

// Over the world and, where the mesh has both, over its feature and data axes (all groups at the
// same time). Collective over `world`.
CommReport bench_comm(Communicator& world, const CommBench& options);

std::vector<std::string> table_of(const CommReport& report);
nlohmann::ordered_json json_of(const CommReport& report);

}  // namespace megadict
