#include "io/fletcher32.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "base/philox.h"
#include "io/hdf5_file.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

// The definition, one big-endian word at a time.
uint32_t slow_fletcher32(const std::vector<unsigned char>& data) {
  uint64_t first = 0, second = 0;
  const auto add = [&](uint64_t word) {
    first = (first + word) > 65535 ? (first + word) - 65535 : first + word;
    second = (second + first) > 65535 ? (second + first) - 65535 : second + first;
  };
  size_t i = 0;
  for (; i + 1 < data.size(); i += 2) add(uint64_t{data[i]} << 8 | data[i + 1]);
  if (i < data.size()) add(uint64_t{data[i]} << 8);
  return static_cast<uint32_t>(second << 16 | first);
}

TEST(Fletcher32, EqualsItsDefinitionAtEveryLength) {
  const Rng rng{1, Purpose::test, 0};
  for (size_t size : {0, 1, 2, 3, 31, 32, 33, 63, 64, 1000, 11519, 11520, 11521, 40000}) {
    for (int kind = 0; kind < 4; ++kind) {  // random, zeros, ones, zeros with a random end
      std::vector<unsigned char> data(size, kind == 2 ? 0xff : 0);
      for (size_t i = kind == 3 ? size / 2 : 0; (kind == 0 || kind == 3) && i < size; ++i)
        data[i] = static_cast<unsigned char>(rng.words(i)[0]);
      EXPECT_EQ(fletcher32(data.data(), size), slow_fletcher32(data)) << size << " " << kind;
    }
  }
}

// The library's own filter is the reference for what a stored chunk must look like.
TEST(Fletcher32, EqualsTheFilterOfTheLibrary) {
  const test::TempFolder folder;
  const Rng rng{2, Purpose::test, 0};
  constexpr int64_t kRows = 37, kWidth = 51;
  std::vector<float> values(kRows * kWidth);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(rng.normals(i)[0]);
  {
    Hdf5File file = Hdf5File::create(folder / "a.h5");
    file.create_dataset("x", {kRows, kWidth}, DType::f32, kRows, /*fletcher32=*/true);
    file.write_rows("x", {0, kRows}, view_of(values.data(), kRows * kWidth));
    file.close();
  }
  const Hdf5File file = Hdf5File::open(folder / "a.h5");
  std::vector<std::byte> stored(values.size() * sizeof(float) + 4);
  file.read_chunk("x", 0, stored);
  uint32_t theirs = 0;
  std::memcpy(&theirs, stored.data() + stored.size() - 4, 4);
  EXPECT_EQ(fletcher32(stored.data(), stored.size() - 4), theirs);
}

TEST(Fletcher32, SeesEveryFlippedByte) {
  std::vector<unsigned char> data(3000, 0x5a);
  const uint32_t before = fletcher32(data.data(), data.size());
  for (size_t i = 0; i < data.size(); i += 7) {
    data[i] ^= 0x40;
    EXPECT_NE(fletcher32(data.data(), data.size()), before) << i;
    data[i] ^= 0x40;
  }
}

}  // namespace
}  // namespace megadict
