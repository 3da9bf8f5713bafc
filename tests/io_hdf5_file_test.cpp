#include "io/hdf5_file.h"

#include <gmock/gmock.h>

#include <cstring>
#include <numeric>

#include "io/file.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::error_of;
using test::TempFolder;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr DType kAll[] = {DType::f16, DType::bf16, DType::f32, DType::f64, DType::i32,
                          DType::i64, DType::u8,   DType::u16, DType::u32, DType::u64};

TEST(Hdf5File, EveryElementTypeRoundTripsInPieces) {
  const TempFolder folder;
  for (DType dtype : kAll) {
    const std::string path = folder / (std::string(name_of(dtype)) + ".h5");
    std::vector<unsigned char> bytes(7 * 3 * size_of(dtype));
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(i % 60);
    const size_t row_bytes = 3 * size_of(dtype);
    {
      Hdf5File file = Hdf5File::create(path);
      file.create_dataset("x", {0, 3}, dtype, 4, true);
      file.append_rows("x", {bytes.data(), 5 * 3, dtype, Device::cpu});
      file.append_rows("x", {bytes.data() + 5 * row_bytes, 2 * 3, dtype, Device::cpu});
      file.close();
    }
    const Hdf5File file = Hdf5File::open(path);
    const Hdf5Dataset facts = file.describe("x");
    EXPECT_THAT(facts.shape, ElementsAre(7, 3));
    EXPECT_THAT(facts.chunk, ElementsAre(4, 3));
    EXPECT_EQ(facts.dtype, dtype);
    EXPECT_TRUE(facts.fletcher32 && facts.little_endian && !facts.other_filters);
    std::vector<unsigned char> back(bytes.size());
    file.read_rows("x", {0, 2}, {back.data(), 2 * 3, dtype, Device::cpu});
    file.read_rows("x", {2, 7}, {back.data() + 2 * row_bytes, 5 * 3, dtype, Device::cpu});
    EXPECT_EQ(back, bytes) << name_of(dtype);
  }
}

TEST(Hdf5File, ConvertsHalfToFloatWhenReading) {
  const TempFolder folder;
  const std::vector<uint16_t> half = {float_to_half(1.5f), float_to_half(-65504.0f)};
  Hdf5File file = Hdf5File::create(folder / "a.h5");
  file.create_dataset("x", {2, 1}, DType::f16);
  file.write_rows("x", {0, 2}, {half.data(), 2, DType::f16, Device::cpu});
  std::vector<float> back(2);
  file.read_rows("x", {0, 2}, view_of(back.data(), 2));
  EXPECT_THAT(back, ElementsAre(1.5f, -65504.0f));
}

TEST(Hdf5File, Attributes) {
  const TempFolder folder;
  {
    Hdf5File file = Hdf5File::create(folder / "a.h5");
    file.create_dataset("x", {1}, DType::f32);
    file.set("/", "model", "gpt2");
    file.set("/", "model", "gpt2-\xc3\xa9");  // replaced
    file.set("/", "empty", std::string());
    file.set("x", "layer", int64_t{-3});
    file.set("/", "gamma", 2.5);
    file.close();
  }
  const Hdf5File file = Hdf5File::open(folder / "a.h5");
  EXPECT_EQ(file.text("/", "model"), "gpt2-\xc3\xa9");
  EXPECT_EQ(file.text("/", "empty"), "");
  EXPECT_EQ(file.integer("x", "layer"), -3);
  EXPECT_EQ(file.real("/", "gamma"), 2.5);
  EXPECT_EQ(file.text("/", "gamma"), std::nullopt);  // another kind
  EXPECT_EQ(file.integer("/", "absent"), std::nullopt);
  EXPECT_EQ(file.text("y", "model"), std::nullopt);
  EXPECT_THAT(file.dataset_names(), ElementsAre("x"));
  EXPECT_TRUE(file.has("x"));
  EXPECT_FALSE(file.has("y"));
}

TEST(Hdf5File, RawChunksAreWhatTheLibraryReads) {
  const TempFolder folder;
  std::vector<float> rows(4 * 2);
  std::iota(rows.begin(), rows.end(), 0.0f);
  Hdf5File file = Hdf5File::create(folder / "a.h5");
  file.create_dataset("x", {4, 2}, DType::f32, 4);
  file.write_chunk("x", 0, std::as_bytes(std::span(rows)));
  std::vector<float> back(8);
  file.read_rows("x", {0, 4}, view_of(back.data(), 8));
  EXPECT_EQ(back, rows);
  std::vector<std::byte> shorter(12);
  EXPECT_THAT(error_of([&] { file.read_chunk("x", 0, shorter); }).line(),
              HasSubstr("32 bytes instead of 12"));
}

TEST(Hdf5File, ErrorsNameFileAndReason) {
  const TempFolder folder;
  const Error missing = error_of([&] { Hdf5File::open(folder / "none.h5"); });
  EXPECT_EQ(missing.code(), ExitCode::bad_data);
  EXPECT_THAT(missing.line(), HasSubstr("none.h5': No such file"));

  write_file_atomic(folder / "text.h5", std::string(4000, 'x'));
  const Error foreign = error_of([&] { Hdf5File::open(folder / "text.h5"); });
  EXPECT_EQ(foreign.code(), ExitCode::bad_data);
  EXPECT_THAT(foreign.line(), HasSubstr("text.h5': not a whole HDF5 file"));

  {
    Hdf5File file = Hdf5File::create(folder / "a.h5");
    file.create_dataset("x", {1000, 10}, DType::f32);
    const std::vector<float> rows(10000);
    file.write_rows("x", {0, 1000}, view_of(rows.data(), 10000));
    file.close();
  }
  const std::string whole = read_file(folder / "a.h5");
  write_file_atomic(folder / "cut.h5", whole.substr(0, whole.size() / 2));
  const Error cut = error_of([&] { Hdf5File::open(folder / "cut.h5"); });
  EXPECT_EQ(cut.code(), ExitCode::bad_data);
  EXPECT_THAT(cut.line(), HasSubstr("truncated"));

  const Hdf5File file = Hdf5File::open(folder / "a.h5");
  EXPECT_THAT(error_of([&] { file.describe("y"); }).line(), HasSubstr("no dataset 'y'"));
  const Error unwritable = error_of([] { Hdf5File::create("/nonexistent_folder/a.h5"); });
  EXPECT_EQ(unwritable.code(), ExitCode::error);
}

}  // namespace
}  // namespace megadict
