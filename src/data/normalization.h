// How a raw row becomes the row the dictionary sees: y = scale * (x - mean). One place normalises,
// the statistics travel with every checkpoint, and exports fold them in (formats.md 2.1).
#pragma once

#include <cstdint>
#include <vector>

namespace megadict {

struct Normalization {
  double scale = 1.0;
  std::vector<float> mean;  // of raw rows, width long; empty = zero
};

}  // namespace megadict
