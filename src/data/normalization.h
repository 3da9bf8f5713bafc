// How a raw row becomes the row the dictionary sees: y = scale * (x - mean). One place normalises,
// the statistics travel with every checkpoint, and exports fold them in.
#pragma once

#include <cstdint>
#include <vector>

#include "data/config.h"

namespace megadict {

struct Normalization {
  double scale = 1.0;
  std::vector<float> mean;  // of raw rows, width long; empty = zero
};

// What is measured once, on the plan's sample, before step 0.
struct SampleStatistics {
  Normalization normalization;
  double var_total = 0;  // mean over rows of |y - mean y|^2, the unit of the loss
  double mean_norm = 0;  // of raw rows
  double gamma = 0;      // |mean x| / sqrt(mean |x - mean x|^2); much above 1 asks for data.center
};

// `sample`: raw rows [rows, width]. data.scale multiplies raw rows first and ends up in the scale;
// with data.center the sample's mean is subtracted, then
//   none: s = 1 · unit_rms: mean |s x|^2 = 1 · sqrt_d: mean |s x| = sqrt(width).
// Sums run in double in the order of the rows. Exit 2 for another data.normalize; exit 3 where all
// rows are equal, so that nothing is left to learn or to scale by.
SampleStatistics measure_sample(const DataConfig& config, const float* sample, int64_t rows,
                                int64_t width);

}  // namespace megadict
