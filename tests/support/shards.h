// Small shards for tests: element (row, column) of a data set is a known number.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "data/shard_writer.h"
#include "io/hdf5_file.h"

namespace megadict::test {

struct ShardSpec {
  int64_t rows = 10;
  int64_t width = 4;
  DType dtype = DType::f32;
  int64_t chunk_rows = 3;
  int64_t first_row = 0;  // global id of its first row
  std::string model = "tiny", hook = "resid";
  int64_t layer = 2;
};

// Exact in every element type for global rows below 250: column 0 is the row's id.
inline float element(int64_t row, int64_t column) {
  return static_cast<float>(column == 0 ? row : (row * 7 + column * 3) % 64 + 1);
}

inline uint16_t to_16_bits(float value, DType dtype) {
  return dtype == DType::f16 ? float_to_half(value) : float_to_bfloat16(value);
}

inline std::vector<std::byte> row_bytes(int64_t row, int64_t width, DType dtype) {
  std::vector<std::byte> bytes(static_cast<size_t>(width) * size_of(dtype));
  for (int64_t c = 0; c < width; ++c) {
    const float value = element(row, c);
    if (dtype == DType::f32)
      reinterpret_cast<float*>(bytes.data())[c] = value;
    else
      reinterpret_cast<uint16_t*>(bytes.data())[c] = to_16_bits(value, dtype);
  }
  return bytes;
}

inline void write_shard(const std::string& path, const ShardSpec& spec) {
  ShardWriter writer(path, {spec.width, spec.dtype, spec.model, spec.hook, "bpe", spec.layer},
                     spec.chunk_rows);
  for (int64_t i = 0; i < spec.rows; ++i) {
    const int64_t row = spec.first_row + i;
    const std::vector<std::byte> bytes = row_bytes(row, spec.width, spec.dtype);
    const auto token = static_cast<uint32_t>(row + 1000), position = static_cast<uint32_t>(i % 5),
               document = static_cast<uint32_t>(row / 5);
    writer.append({bytes.data(), 1, &token, &position, &document});
  }
  writer.finish();
}

// Shards of these sizes, one after the other, as FOLDER/a.h5, FOLDER/b.h5, ...
inline void write_shards(const std::string& folder, const std::vector<int64_t>& sizes,
                         ShardSpec spec = {}) {
  char name = 'a';
  for (int64_t rows : sizes) {
    spec.rows = rows;
    write_shard(folder + "/" + name++ + ".h5", spec);
    spec.first_row += rows;
  }
}

// FOLDER/a.h5: `rows` rows of two ones, but for a NaN in row 33.
inline void write_shard_with_nan(const std::string& folder, int64_t rows) {
  std::vector<float> values(static_cast<size_t>(rows) * 2, 1.0f);
  values[33 * 2 + 1] = std::nanf("");
  Hdf5File file = Hdf5File::create(folder + "/a.h5");
  file.create_dataset("activations", {rows, 2}, DType::f32, 10, true);
  file.write_rows("activations", {0, rows}, view_of(values.data(), rows * 2));
  file.close();
}

}  // namespace megadict::test
