// A machine as the planner sees it: what `megadict bench machine` measures, or a file that says
// which of its numbers are projections.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "comm/communicator.h"

namespace megadict {

// Rates of all `threads` of one node together; those of a rank are its share.
struct Machine {
  std::string name;
  bool measured = true;  // false: numbers taken from elsewhere
  int threads = 1;
  int devices =
      0;  // GPUs of a node, a rank each: its rates are theirs; 0 = ranks share the threads
  // Encoding a row costs latents * width * 2 / rate + k * width * 4 / random_rows.
  double fp32_rate = 0;         // FLOP/s of the exact encode
  double screen_rate = 0;       // operations/s of the int8 screen; 0 = none here
  double screen_bf16_rate = 0;  // of the bf16 one
  double random_rows = 0;       // bytes/s, rows of a dictionary in random order
  double stream = 0;            // bytes/s, reads and writes of memory in order
  // One collective between ranks of a node: seconds, and bytes/s a rank receives.
  double latency_s = 0, received = 0;
  double saved = 0;  // bytes/s of a checkpoint, written by all ranks and synced; 0 = not known
  // Part of the rates that one of `ranks` on a node has.
  double share(int ranks) const { return 1.0 / (devices > 0 ? devices : ranks); }
  int ranks_per_node() const { return devices > 0 ? devices : threads; }
};

// Measures for some seconds; between several ranks also their exchange (else one rank's numbers
// stand: copies within memory), and how fast `folder`, where one is given, takes checkpoints.
// Collective over `world`.
Machine measure_machine(Communicator& world, double seconds, const std::string& folder);

nlohmann::ordered_json json_of(const Machine& machine);
Machine read_machine(const std::string& path);  // exit 3 where a number is missing or not positive

}  // namespace megadict
