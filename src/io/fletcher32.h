// The Fletcher-32 checksum as HDF5's filter of that name computes it (H5Z_FILTER_FLETCHER32): sums
// of big-endian 16-bit words modulo 65535. Our own, because the library's runs one word at a time
// and would be slower than the disk; a stored chunk is its bytes followed by this number,
// little-endian.
#pragma once

#include <cstddef>
#include <cstdint>

namespace megadict {

uint32_t fletcher32(const void* data, size_t bytes);

}  // namespace megadict
