// Damaged and hostile files of every kind that is read: an Error of exit 3, or the values; never a
// crash, never memory that the file's size does not allow.
#include <gmock/gmock.h>

#include <fstream>
#include <functional>
#include <limits>

#include "base/philox.h"
#include "io/npz.h"
#include "io/pt_file.h"
#include "io/safetensors.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::error_of;
using test::TempFolder;
using testing::HasSubstr;

struct Kind {
  const char* name;
  std::function<void(const std::string& path)> write;
  std::function<int64_t(const std::string& path)> read;  // returns the elements read
};

const float kValues[6] = {1, 2, 3, 4, 5, 6};
const int64_t kSteps[2] = {7, 8};

std::vector<TensorToWrite> tensors() {
  return {{"weight", {2, 3}, view_of(kValues, 6)}, {"bias", {3}, view_of(kValues, 3)}};
}

void write_npy(const std::string& path) {
  std::string data(sizeof(kValues), '\0');
  std::copy_n(reinterpret_cast<const char*>(kValues), data.size(), data.data());
  write_file_atomic(path, npy_header_text(DType::f32, {2, 3}) + data);
}

int64_t read_npy(const std::string& path) {
  const NpyFile file = NpyFile::open(path);
  std::vector<std::byte> rows(static_cast<size_t>(file.rows() * file.row_elements()) *
                              size_of(file.dtype()));
  file.read_rows({0, file.rows()},
                 {rows.data(), file.rows() * file.row_elements(), file.dtype(), Device::cpu});
  return file.rows() * file.row_elements();
}

template <class File, class Items>
int64_t read_all(const File& file, const Items& items, int64_t (*count)(const File&, size_t),
                 void (*read)(const File&, size_t, float*)) {
  int64_t sum = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    std::vector<float> values(static_cast<size_t>(count(file, i)));
    read(file, i, values.data());
    sum += count(file, i);
  }
  return sum;
}

std::vector<Kind> kinds() {
  return {{"a.safetensors", [](const std::string& path) { write_safetensors(path, tensors()); },
           [](const std::string& path) {
             int64_t sum = 0;
             const SafetensorsFile file = SafetensorsFile::open(path);
             for (const SafetensorsEntry& entry : file.entries())
               sum += static_cast<int64_t>(file.read_as_float(entry).size());
             return sum;
           }},
          {"a.npy", write_npy, read_npy},
          {"a.npz", [](const std::string& path) { write_npz(path, tensors()); },
           [](const std::string& path) {
             const NpzFile file = NpzFile::open(path);
             return read_all<NpzFile>(
                 file, file.arrays(),
                 [](const NpzFile& f, size_t i) { return f.arrays()[i].header.elements(); },
                 [](const NpzFile& f, size_t i, float* to) { f.read_as_float(f.arrays()[i], to); });
           }},
          {"a.pt",
           [](const std::string& path) {
             PtToWrite what{tensors(), {{"activation", "ReLU"}}, {"empty"}};
             what.tensors.push_back({"steps", {2}, view_of(kSteps, 2)});
             write_pt(path, what);
           },
           [](const std::string& path) {
             const PtFile file = PtFile::open(path);
             return read_all<PtFile>(
                 file, file.tensors(),
                 [](const PtFile& f, size_t i) { return f.tensors()[i].elements(); },
                 [](const PtFile& f, size_t i, float* to) { f.read_as_float(f.tensors()[i], to); });
           }}};
}

// The file as it is now is read, or refused in one line of exit 3.
void expect_sound(const Kind& kind, const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;  // thousands of times: nothing to be synced
  try {
    EXPECT_LE(kind.read(path), static_cast<int64_t>(content.size())) << kind.name;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_data) << error.line();
    EXPECT_EQ(error.line().find('\n'), std::string::npos) << error.line();
  }
}

TEST(Hostile, WhatWasWrittenIsRead) {
  const TempFolder folder;
  for (const Kind& kind : kinds()) {
    kind.write(folder / kind.name);
    EXPECT_GE(kind.read(folder / kind.name), 6) << kind.name;
  }
}

TEST(Hostile, EveryTruncationIsRefused) {
  const TempFolder folder;
  for (const Kind& kind : kinds()) {
    kind.write(folder / kind.name);
    const std::string whole = read_file(folder / kind.name);
    for (size_t bytes = 0; bytes < whole.size(); bytes += 1 + whole.size() / 200) {
      SCOPED_TRACE(std::string(kind.name) + " cut to " + std::to_string(bytes));
      write_file_atomic(folder / kind.name, whole.substr(0, bytes));
      EXPECT_EQ(error_of([&] { kind.read(folder / kind.name); }).code(), ExitCode::bad_data);
    }
  }
}

// Bits, bytes and whole numbers changed at places drawn by a seed.
TEST(Hostile, DamageIsNoticedOrHarmless) {
  constexpr uint64_t kRounds = 1500;
  const uint64_t extremes[] = {0,
                               1,
                               0x7F,
                               0xFF,
                               0x7FFFFFFF,
                               0xFFFFFFFF,
                               uint64_t{1} << 40,
                               static_cast<uint64_t>(std::numeric_limits<int64_t>::max()),
                               ~uint64_t{0}};
  const TempFolder folder;
  const Rng rng{17, Purpose::test, 0};
  for (const Kind& kind : kinds()) {
    kind.write(folder / kind.name);
    const std::string whole = read_file(folder / kind.name);
    for (uint64_t round = 0; round < kRounds; ++round) {
      SCOPED_TRACE(std::string(kind.name) + " round " + std::to_string(round));
      std::string content = whole;
      const uint64_t draw = rng.bits64(round), at = (draw >> 8) % content.size();
      if (draw % 3 == 0) content[at] = static_cast<char>(content[at] ^ (1 << ((draw >> 4) % 8)));
      if (draw % 3 == 1) content[at] = static_cast<char>(draw >> 56);
      if (draw % 3 == 2) {
        const uint64_t value = extremes[(draw >> 4) % std::size(extremes)];
        const size_t bytes = size_t{1} << ((draw >> 2) % 4);
        for (size_t i = 0; i < bytes && at + i < content.size(); ++i)
          content[at + i] = static_cast<char>(value >> (8 * i));
      }
      expect_sound(kind, folder / kind.name, content);
    }
  }
}

// A pickle in an archive that is otherwise sound.
std::string refusal_of_pickle(const TempFolder& folder, const std::string& pickle) {
  ZipWriter zip(folder / "x.pt");
  zip.add("archive/data.pkl", pickle);
  zip.add("archive/data/0", std::string(24, '\0'));
  zip.commit();
  const Error error = error_of([&] { PtFile::open(folder / "x.pt"); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  return error.line();
}

TEST(Hostile, PicklesRunNothing) {
  const TempFolder folder;
  const std::string start("\x80\x02", 2);
  EXPECT_THAT(refusal_of_pickle(folder, start + "cos\nsystem\nX\x02\0\0\0ls\x85R."),
              HasSubstr("names the Python object 'os system'"));
  EXPECT_THAT(refusal_of_pickle(folder, start + "c__builtin__\neval\n."), HasSubstr("eval"));
  EXPECT_THAT(refusal_of_pickle(folder, start + "}b."), HasSubstr("nothing to take"));
  EXPECT_THAT(refusal_of_pickle(folder, start + "h\x05."), HasSubstr("never made"));
  EXPECT_THAT(refusal_of_pickle(folder, start + "ios\nsystem\n."), HasSubstr("is not read"));
  EXPECT_THAT(refusal_of_pickle(folder, start + "K\x01."), HasSubstr("no dictionary of tensors"));
  EXPECT_THAT(refusal_of_pickle(folder, start + "}"), HasSubstr("ends early"));
}

TEST(Hostile, TensorsLieInsideTheirRecords) {
  const TempFolder folder;
  const auto with_tensor = [](const std::string& count, const std::string& offset,
                              const std::string& shape, const std::string& strides) {
    return std::string("\x80\x02}X\x01\0\0\0a", 9) + "ctorch._utils\n_rebuild_tensor_v2\n" +
           std::string("((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0", 39) +
           std::string("0X\x03\0\0\0cpu", 9) + count + "tQ" + offset + shape + strides + "tRs.";
  };
  const std::string one = "K\x01\x85", six = "K\x06", zero("K\0", 2);
  EXPECT_THAT(refusal_of_pickle(folder, with_tensor(six, zero, "K\x07\x85", one)),
              HasSubstr("[7] in a storage of 6"));
  EXPECT_THAT(refusal_of_pickle(folder, with_tensor(six, "K\x04", "K\x03\x85", one)),
              HasSubstr("[3] in a storage of 6"));
  EXPECT_THAT(refusal_of_pickle(folder, with_tensor("K\x64", zero, "K\x63\x85", one)),
              HasSubstr("its record has 24 bytes"));
  EXPECT_THAT(refusal_of_pickle(folder, with_tensor(six, zero, "J\xff\xff\xff\xff\x85", one)),
              HasSubstr("a size that is none"));
  // Stride 0 would make much of little.
  EXPECT_THAT(
      refusal_of_pickle(folder, with_tensor(six, zero, "J\xff\xff\xff\x7f\x85", zero + "\x85")),
      HasSubstr("in a storage of 6"));
}

TEST(Hostile, EntriesMayNotOverlap) {
  const TempFolder folder;
  write_npz(folder / "a.npz", tensors());
  std::string content = read_file(folder / "a.npz");
  // Both directory entries to the first one's place.
  const std::string mark("PK\x01\x02", 4);
  const size_t first = content.find(mark), second = content.find(mark, first + 1);
  content.replace(second + 42, 4, content.substr(first + 42, 4));
  write_file_atomic(folder / "a.npz", content);
  const Error error = error_of([&] { ZipFile::open(folder / "a.npz"); });
  EXPECT_THAT(error.line(), HasSubstr("overlap"));
}

}  // namespace
}  // namespace megadict
