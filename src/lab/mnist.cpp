#include "lab/mnist.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "comm/launch.h"
#include "io/file.h"
#include "io/idx_file.h"

namespace megadict {

namespace {

constexpr const char* kFiles[] = {"train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
                                  "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"};

std::vector<std::string> places(const std::string& given) {
  if (!given.empty()) return {given};
  const std::string named = environment("MEGADICT_MNIST");
  if (!named.empty()) return {named};
  return {"./mnist", "../shared/data/mnist"};
}

Images read_images(const std::string& folder, const char* images, const char* labels) {
  const std::string image_path = folder + "/" + images, label_path = folder + "/" + labels;
  IdxArray pixels = read_idx(image_path), digits = read_idx(label_path);
  const std::vector<int64_t> wanted = {static_cast<int64_t>(digits.values.size()), kImageSide,
                                       kImageSide};
  if (pixels.shape != wanted)
    fail(ExitCode::bad_data,
         fmt::format("'{}' is [{}]: with its {} labels it should be [{}]", image_path,
                     fmt::join(pixels.shape, ","), wanted[0], fmt::join(wanted, ",")));
  for (size_t i = 0; i < digits.values.size(); ++i)
    if (digits.values[i] >= kDigits)
      fail(ExitCode::bad_data,
           fmt::format("'{}': label {} is {}, not a digit", label_path, i, digits.values[i]));
  return {std::move(pixels.values), std::move(digits.values)};
}

Images part_of(const Images& all, int64_t first, int64_t count, const std::string& folder) {
  if (first + count > all.count())
    fail(ExitCode::bad_data,
         fmt::format("{} images are asked for, '{}' has {}", first + count, folder, all.count()));
  const auto pixel = all.pixels.begin() + first * kPixels;
  const auto label = all.labels.begin() + first;
  return {{pixel, pixel + count * kPixels}, {label, label + count}};
}

// Row i of the batch to lane i of its tile, each number by `number(i, f)`.
template <class T, class Number>
void fill_tiles(Tiles<T>& to, const Number& number) {
  for (int64_t t = 0; t < to.tiles(); ++t)
    for (int64_t lane = 0; lane < kLane; ++lane) {
      T* at = to.tile(t) + lane;
      const int64_t i = t * kLane + lane;
      for (int64_t f = 0; f < to.features(); ++f) at[f * kLane] = number(i, f);
    }
}

}  // namespace

std::string find_mnist(const std::string& given) {
  const std::vector<std::string> tried = places(given);
  for (const std::string& folder : tried)
    if (std::all_of(std::begin(kFiles), std::end(kFiles),
                    [&](const char* file) { return file_exists(folder + "/" + file); }))
      return folder;
  fail_agreed(
      ExitCode::bad_data, fmt::format("no MNIST in {}", fmt::join(tried, ", ")),
      fmt::format("--mnist DIR or MEGADICT_MNIST names a folder with {}", fmt::join(kFiles, ", ")));
}

Mnist read_mnist(const std::string& folder, const MnistSplit& split) {
  const Images test = read_images(folder, kFiles[2], kFiles[3]);
  if (split.test_file_alone)
    return {part_of(test, 0, split.train, folder),
            part_of(test, split.train, split.validation, folder)};
  const Images train = read_images(folder, kFiles[0], kFiles[1]);
  return {part_of(train, 0, split.train, folder), part_of(test, 0, split.validation, folder)};
}

template <class T>
void gather_images(const Images& images, std::span<const int32_t> which, Tiles<T>& to) {
  constexpr T kScale = T{1} / 255;
  fill_tiles(to, [&](int64_t i, int64_t f) {
    const auto row = static_cast<size_t>(which[static_cast<size_t>(i)]) * kPixels;
    return static_cast<T>(images.pixels[row + static_cast<size_t>(f)]) * kScale;
  });
}

void gather_rows(const Rows& from, std::span<const int32_t> which, Tiles<float>& to) {
  fill_tiles(to, [&](int64_t i, int64_t f) { return from.row(which[static_cast<size_t>(i)])[f]; });
}

void store_rows(const Tiles<float>& from, int64_t first, Rows& to) {
  for (int64_t i = 0; i < from.samples(); ++i) {
    float* row = to.values.data() + (first + i) * to.width;
    for (int64_t f = 0; f < from.features(); ++f) row[f] = from.at(i, f);
  }
}

template void gather_images(const Images&, std::span<const int32_t>, Tiles<float>&);
template void gather_images(const Images&, std::span<const int32_t>, Tiles<double>&);

}  // namespace megadict
