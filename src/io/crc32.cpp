#include "io/crc32.h"

#include <array>
#include <cstring>

namespace megadict {

namespace {

// table[k][b]: what byte b does, followed by k zero bytes; eight bytes are taken at a time.
constexpr size_t kLanes = 8;
using Tables = std::array<std::array<uint32_t, 256>, kLanes>;

constexpr Tables make_tables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) != 0 ? 0xEDB88320u : 0u);
    tables[0][byte] = value;
  }
  for (size_t lane = 1; lane < kLanes; ++lane)
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t value = tables[lane - 1][byte];
      tables[lane][byte] = (value >> 8) ^ tables[0][value & 0xFF];
    }
  return tables;
}

constexpr Tables kTables = make_tables();

}  // namespace

uint32_t crc32(uint32_t before, const void* data, size_t bytes) {
  uint32_t crc = ~before;
  const auto* at = static_cast<const unsigned char*>(data);
  for (; bytes >= kLanes; bytes -= kLanes, at += kLanes) {
    uint32_t low = 0, high = 0;
    std::memcpy(&low, at, 4);
    std::memcpy(&high, at + 4, 4);
    low ^= crc;
    crc = 0;
    for (size_t i = 0; i < 4; ++i) {
      crc ^= kTables[7 - i][(low >> (8 * i)) & 0xFF];
      crc ^= kTables[3 - i][(high >> (8 * i)) & 0xFF];
    }
  }
  for (; bytes > 0; --bytes, ++at) crc = (crc >> 8) ^ kTables[0][(crc ^ *at) & 0xFF];
  return ~crc;
}

}  // namespace megadict
