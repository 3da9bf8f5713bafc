#include "io/safetensors.h"

#include <gmock/gmock.h>

#include <cstring>
#include <fstream>

#include "base/philox.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::error_of;
using test::TempFolder;
using testing::ElementsAre;
using testing::HasSubstr;

std::string file_with(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

TEST(Safetensors, RoundTripsEveryTypeAndTheMetadata) {
  const TempFolder folder;
  std::vector<unsigned char> bytes(6 * 8);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(i);
  std::vector<TensorToWrite> tensors;
  for (DType dtype : {DType::u8, DType::f16, DType::bf16, DType::f32, DType::f64, DType::i32,
                      DType::i64, DType::u16, DType::u32, DType::u64})
    tensors.push_back({std::string(name_of(dtype)), {2, 3}, {bytes.data(), 6, dtype, Device::cpu}});
  tensors.push_back({"empty", {0, 5}, {nullptr, 0, DType::f32, Device::cpu}});
  tensors.push_back({"scalar", {}, {bytes.data(), 1, DType::f32, Device::cpu}});
  write_safetensors(folder / "a.safetensors", tensors, {{"W_dec.latents", "0:2"}, {"é", "\"\n"}});

  const SafetensorsFile file = SafetensorsFile::open(folder / "a.safetensors");
  EXPECT_EQ(file.metadata(), (SafetensorsMetadata{{"W_dec.latents", "0:2"}, {"é", "\"\n"}}));
  EXPECT_EQ(file.entries().size(), tensors.size());
  for (const TensorToWrite& tensor : tensors) {
    const SafetensorsEntry& entry = file.at(tensor.name);
    EXPECT_EQ(entry.shape, tensor.shape);
    EXPECT_EQ(entry.begin % static_cast<int64_t>(size_of(tensor.data.dtype)), 0);
    std::vector<unsigned char> back(tensor.data.bytes());
    file.read(entry, {back.data(), tensor.data.count, tensor.data.dtype, Device::cpu});
    EXPECT_TRUE(back.empty() || std::memcmp(back.data(), bytes.data(), back.size()) == 0)
        << tensor.name;
  }
  std::vector<float> row(3);
  file.read_rows(file.at("float32"), {1, 2}, view_of(row.data(), 3));
  EXPECT_EQ(std::memcmp(row.data(), bytes.data() + 12, 12), 0);
  EXPECT_THAT(file.read_as_float(file.at("float16"))[1], half_to_float(0x0302));
}

TEST(Safetensors, WrongUseNamesFileAndTensor) {
  const TempFolder folder;
  const float value = 1;
  write_safetensors(folder / "a.safetensors", {{"x", {1}, view_of(&value, 1)}});
  const SafetensorsFile file = SafetensorsFile::open(folder / "a.safetensors");
  EXPECT_THAT(error_of([&] { file.at("W_dec"); }).line(),
              HasSubstr("no tensor 'W_dec'; it holds x"));
  double wrong = 0;
  EXPECT_THAT(error_of([&] { file.read(file.at("x"), view_of(&wrong, 1)); }).line(),
              HasSubstr("'x' is F32 [1], expected 1 elements of float64"));
}

struct Hostile {
  std::string content, reason;
};

std::vector<Hostile> hostile_files() {
  const std::string f32 = R"("dtype":"F32","shape":[1],"data_offsets":)";
  const auto one = [](const std::string& text) { return file_with(text, "1234"); };
  return {
      {"", "only 0 bytes"},
      {"1234567", "only 7 bytes"},
      {std::string(8, '\xff'), "a header of 18446744073709551615 bytes"},
      {std::string("\x10\0\0\0\0\0\0\0{}", 10), "a header of 16 bytes in a file of 10"},
      {one(""), "not a JSON object"},
      {one("[]"), "not a JSON object"},
      {one("{"), "not JSON"},
      {one("{}"), "the tensors take 0 bytes of data, the file holds 4"},
      {one(R"({"a":1})"), "unexpected number"},
      {one(R"({"a":"b"})"), "unexpected text"},
      {one(R"({"a":{"b":{}}})"), "unexpected object"},
      {one(R"({"a":{"dtype":["F32"]}})"), "unexpected array"},
      {one("{\"a\":" + std::string(100000, '[')), "unexpected array"},
      {one("{\"a\":{" + f32 + "[0,4]},\"a\":{" + f32 + "[0,4]}}"), "'a' appears twice"},
      {one("{\"a\":{" + f32 + "[0,4],\"x\":\"y\"}}"), "unexpected text"},
      {one(R"({"a":{"dtype":"F32","shape":[1]}})"), "needs exactly"},
      {one(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})"), "two numbers"},
      {one(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})"), "negative"},
      {one(R"({"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})"), "fraction"},
      {one(R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})"), "unknown type 'F33'"},
      {one(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})"), "ask for 8 bytes"},
      {one(R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}})"),
       "too large"},
      {one(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})"), "bytes 4 to 0"},
      {one(R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]}})"),
       "too large"},
      {one("{\"a\":{" + f32 + "[4,8]}}"), "a hole"},
      {one("{\"a\":{" + f32 + "[0,4]},\"b\":{" + f32 + "[0,4]}}"), "an overlap"},
      {file_with("{\"a\":{" + f32 + "[0,4]}}", "12345"), "the file holds 5"},
      {file_with("{\"a\":{" + f32 + "[0,4]}}", "123"), "the file holds 3"},
      {one(R"({"__metadata__":{"a":1}})"), "unexpected number"},
      {one(R"({"__metadata__":["a"]})"), "unexpected array"},
      {one("{\"a\xff\":{" + f32 + "[0,4]}}"), "not JSON"},
  };
}

TEST(Safetensors, HostileHeadersAreRefusedWithTheReason) {
  const TempFolder folder;
  for (const Hostile& bad : hostile_files()) {
    write_file_atomic(folder / "a.safetensors", bad.content);
    const Error error = error_of([&] { SafetensorsFile::open(folder / "a.safetensors"); });
    EXPECT_EQ(error.code(), ExitCode::bad_data);
    EXPECT_THAT(error.line(), HasSubstr(bad.reason)) << bad.content.substr(0, 200);
    EXPECT_THAT(error.line(), HasSubstr("a.safetensors'"));
  }
}

// A valid file with random bytes changed, removed or doubled is either refused or read within its
// bounds; nothing else may happen (the sanitizers watch this test).
TEST(Safetensors, MutationsOfAValidFileNeverCrash) {
  const TempFolder folder;
  std::vector<float> values(12, 1.5f);
  write_safetensors(
      folder / "a.safetensors",
      {{"W_dec", {3, 4}, view_of(values.data(), 12)}, {"b", {2}, view_of(values.data(), 2)}},
      {{"W_dec.latents", "0:3"}});
  const std::string valid = read_file(folder / "a.safetensors");
  int refused = 0, accepted = 0;
  for (uint64_t trial = 0; trial < 3000; ++trial) {
    const Rng rng{trial, Purpose::test, 0};
    std::string mutated = valid;
    const auto header_size = static_cast<uint64_t>(valid.size() - 14 * 4);
    for (uint32_t edit = 0; edit < 1 + trial % 4; ++edit) {
      const Philox4 draw = rng.words(edit);
      const size_t at = std::min<size_t>(draw[0] % header_size, mutated.size() - 1);
      if (draw[1] % 4 == 0)
        mutated.erase(at, 1 + draw[2] % 5);
      else if (draw[1] % 4 == 1)
        mutated.insert(at, mutated.substr(at, 1 + draw[2] % 40));
      else
        mutated[at] =
            static_cast<char>(draw[1] % 4 == 2 ? "0123456789[]{}\",:"[draw[2] % 17] : draw[2]);
    }
    remove_file(folder / "m.safetensors");  // truncating in place would be slow
    std::ofstream(folder / "m.safetensors", std::ios::binary) << mutated;
    try {
      const SafetensorsFile file = SafetensorsFile::open(folder / "m.safetensors");
      for (const SafetensorsEntry& entry : file.entries()) {
        ASSERT_LE(entry.end - entry.begin, static_cast<int64_t>(mutated.size()));
        if (entry.dtype == DType::f32) file.read_as_float(entry);
      }
      ++accepted;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_data);
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(accepted, 10);  // edits inside names and texts are harmless
}

}  // namespace
}  // namespace megadict
