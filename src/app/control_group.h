// What the control groups above a process leave it: containers and batch systems give less memory
// than the machine has.
#pragma once

#include <cstdint>
#include <string>

namespace megadict {

constexpr int64_t kUnknownBytes = -1;

// Bytes below the tightest limit, pages that the group would give up included; kUnknownBytes where
// there is none. `membership`: /proc/self/cgroup, whose lines name groups of version 2 and of
// version 1's memory controller; `root`: where their trees are mounted.
int64_t available_in_group(const std::string& membership, const std::string& root);

}  // namespace megadict
