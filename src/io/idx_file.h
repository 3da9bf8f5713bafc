// IDX files, plain or gzipped: the format of MNIST's images and labels. A big-endian header (two
// zero bytes, element type, number of dimensions, their sizes), then the elements.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace megadict {

struct IdxArray {
  std::vector<int64_t> shape;
  std::vector<uint8_t> values;  // row-major, as many as the shape says
};

// Of unsigned bytes; other element types, and arrays above 1 GiB, are refused. Exit 3 with the path
// for a file that cannot be read, is damaged, or holds fewer or more than its header says.
IdxArray read_idx(const std::string& path);

}  // namespace megadict
