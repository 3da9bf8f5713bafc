// CRC-32 as zip archives use it (ISO 3309).
#pragma once

#include <cstddef>
#include <cstdint>

namespace megadict {

// Of what came before, continued; 0 at the beginning.
uint32_t crc32(uint32_t before, const void* data, size_t bytes);

}  // namespace megadict
