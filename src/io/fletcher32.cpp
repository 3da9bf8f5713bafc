#include "io/fletcher32.h"

#include <algorithm>
#include <cstring>

#include "base/clones.h"

namespace megadict {

namespace {

// With w_0 .. w_{n-1} the words, the checksum is (sum of w_i, sum of (n - i) w_i), both modulo
// 65535. Sixteen lanes run side by side (lane j takes words j, j + 16, ...) and are combined per
// block; a block is short enough for 32-bit accumulators: 65535 * 360 * 361 / 2 < 2^32.
constexpr size_t kLanes = 16, kBlockRows = 360;
constexpr uint64_t kModulus = 65535;

struct Sums {
  uint64_t first = 0, second = 0;
};

MEGADICT_CLONES void add_block(const unsigned char* data, size_t rows, Sums& sums) {
  uint32_t first[kLanes] = {}, second[kLanes] = {};
  for (size_t row = 0; row < rows; ++row) {
    uint16_t words[kLanes];
    std::memcpy(words, data + row * sizeof(words), sizeof(words));
    for (size_t lane = 0; lane < kLanes; ++lane) first[lane] += words[lane];
    for (size_t lane = 0; lane < kLanes; ++lane) second[lane] += first[lane];
  }
  // The word of lane j in row r has weight (rows - r) * kLanes - j inside the block.
  uint64_t block_first = 0, block_second = 0;
  for (size_t lane = 0; lane < kLanes; ++lane) {
    block_first += first[lane];
    block_second += kLanes * uint64_t{second[lane]} - lane * uint64_t{first[lane]};
  }
  sums.second = (sums.second + rows * kLanes * sums.first + block_second) % kModulus;
  sums.first = (sums.first + block_first) % kModulus;
}

// The filter's own folding never turns a non-zero sum into 0: it yields 1 .. 65535.
uint32_t folded(uint64_t sum, bool all_zero) {
  if (all_zero) return 0;
  return sum == 0 ? 65535 : static_cast<uint32_t>(sum);
}

bool is_all_zero(const unsigned char* data, size_t bytes) {
  return bytes == 0 || (data[0] == 0 && std::memcmp(data, data + 1, bytes - 1) == 0);
}

}  // namespace

uint32_t fletcher32(const void* data, size_t bytes) {
  const auto* next = static_cast<const unsigned char*>(data);
  Sums sums;
  size_t rows_left = bytes / (2 * kLanes);
  while (rows_left > 0) {
    const size_t rows = std::min(rows_left, kBlockRows);
    add_block(next, rows, sums);
    next += rows * 2 * kLanes;
    rows_left -= rows;
  }
  for (size_t tail = bytes % (2 * kLanes); tail > 0;) {
    const size_t taken = std::min<size_t>(tail, 2);  // an odd last byte is a word with a zero
    uint16_t word = 0;
    std::memcpy(&word, next, taken);
    sums.first = (sums.first + word) % kModulus;
    sums.second = (sums.second + sums.first) % kModulus;
    next += taken;
    tail -= taken;
  }
  // Words were taken little-endian; swapping the bytes of a word multiplies it by 256 modulo 65535.
  const bool all_zero = is_all_zero(static_cast<const unsigned char*>(data), bytes);
  const uint32_t first = folded(sums.first * 256 % kModulus, all_zero);
  const uint32_t second = folded(sums.second * 256 % kModulus, all_zero);
  return (second << 16) | first;
}

}  // namespace megadict
