// debug.check_collectives: what each rank is about to do, as plain bytes to be gathered, and the
// sentence that says who differs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/buffer_view.h"

namespace megadict {

struct CallRecord {
  char kind[16] = "";
  char name[88] = "";
  char op[8] = "";
  int64_t count = -1;  // -1: it may differ between ranks
  int32_t dtype = 0;
  int32_t root = -1;

  bool operator==(const CallRecord&) const = default;
};
static_assert(sizeof(CallRecord) == 128);

// "all_reduce 'loss' (sum of 7 float32)"
std::string describe(const CallRecord& record);

// "" if all are equal; else which ranks do what, measured by what most ranks do.
std::string difference(const std::vector<CallRecord>& by_rank);

}  // namespace megadict
