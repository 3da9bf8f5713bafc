// MNIST as the connectors of seed 001 see it (A7): pixels divided by 255, a row an image. The four
// files are the usual ones, gzipped:
//   train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz (60,000)
//   t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz   (10,000)
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lab/tiles.h"

namespace megadict {

constexpr int64_t kImageSide = 28, kPixels = kImageSide * kImageSide, kDigits = 10;

struct Images {
  std::vector<uint8_t> pixels, labels;  // [count, 28, 28], [count]
  int64_t count() const { return static_cast<int64_t>(labels.size()); }
};

struct MnistSplit {
  int64_t train = 60000, validation = 10000;
  bool test_file_alone = false;  // both from the 10,000 of t10k: the first train, the next validate
};

struct Mnist {
  Images train, validation;
};

// The folder that holds the files: `given` where it is not empty, else the environment variable
// MEGADICT_MNIST, else ./mnist, else ../shared/data/mnist. Exit 3 with where it looked.
std::string find_mnist(const std::string& given);
// Exit 3 with the path for a damaged file, for images of another size, and for fewer than asked.
Mnist read_mnist(const std::string& folder, const MnistSplit& split);

// [which.size(), 784], 0 to 1. which.size(): a multiple of kLane, as below.
template <class T>
void gather_images(const Images& images, std::span<const int32_t> which, Tiles<T>& to);

// Numbers of each image, row-major: a batch in random order reads whole rows.
struct Rows {
  int64_t count = 0, width = 0;
  std::vector<float> values;

  Rows() = default;
  Rows(int64_t n, int64_t w) : count(n), width(w), values(static_cast<size_t>(n * w)) {}
  const float* row(int64_t i) const { return values.data() + i * width; }
};
void gather_rows(const Rows& from, std::span<const int32_t> which, Tiles<float>& to);
// to[first + i] = row i of `from`.
void store_rows(const Tiles<float>& from, int64_t first, Rows& to);

}  // namespace megadict
