#include "io/npy.h"

#include <gmock/gmock.h>

#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::error_of;
using test::TempFolder;
using testing::ElementsAre;
using testing::HasSubstr;

// As NumPy writes it: magic, version, header length, header padded to 64 with a newline.
std::string npy(const std::string& header, const std::string& data, int version = 1) {
  std::string text = header;
  const size_t prefix = version == 1 ? 10 : 12;
  while ((prefix + text.size() + 1) % 64 != 0) text += ' ';
  text += '\n';
  std::string out = "\x93NUMPY";
  out += static_cast<char>(version);
  out += '\0';
  for (size_t i = 0; i < prefix - 8; ++i) out += static_cast<char>(text.size() >> (8 * i));
  return out + text + data;
}

const std::string kHeader = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";

TEST(Npy, ReadsEveryVersion) {
  const TempFolder folder;
  const float values[6] = {1, 2, 3, 4, 5, 6};
  const std::string data(reinterpret_cast<const char*>(values), sizeof(values));
  for (int version : {1, 2, 3}) {
    write_file_atomic(folder / "a.npy", npy(kHeader, data, version));
    const NpyFile file = NpyFile::open(folder / "a.npy");
    EXPECT_EQ(file.dtype(), DType::f32);
    EXPECT_THAT(file.shape(), ElementsAre(2, 3));
    std::vector<float> row(3);
    file.read_rows({1, 2}, view_of(row.data(), 3));
    EXPECT_THAT(row, ElementsAre(4, 5, 6));
  }
}

TEST(Npy, FlattensLeadingDimensions) {
  const TempFolder folder;
  write_file_atomic(folder / "a.npy", npy("{'descr':'<f2','fortran_order':False,'shape':(2,5,4)}",
                                          std::string(80, '\0')));
  const NpyFile file = NpyFile::open(folder / "a.npy");
  EXPECT_EQ(file.rows(), 10);
  EXPECT_EQ(file.row_elements(), 4);
}

TEST(Npy, RefusesWithTheReason) {
  const TempFolder folder;
  const std::string data(24, '\0');
  const struct {
    std::string content, reason;
  } cases[] = {
      {"", "only 0 bytes"},
      {std::string(100, 'x'), "does not begin with"},
      {npy(kHeader, data, 4), "unknown version 4"},
      {npy(kHeader, data.substr(0, 20)), "truncated"},
      {npy("{'descr': '>f4', 'fortran_order': False, 'shape': (2, 3)}", data), "big-endian"},
      {npy("{'descr': '|O', 'fortran_order': False, 'shape': (2, 3)}", data), "Python objects"},
      {npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3)}", data), "Fortran order"},
      {npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (6,)}", data), "records"},
      {npy("{'descr': '<c8', 'fortran_order': False, 'shape': (3,)}", data), "unsupported"},
      {npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999, 9999999999, 9)}", data),
       "too large"},
      {npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 3)}", data), "no tuple"},
      {npy("{'descr': '<f4', 'fortran_order': False}", data), "lacks"},
      {npy("{'descr': '<f4'", data), "not a dictionary"},
      {std::string("\x93NUMPY\x02\0\xff\xff\xff\xff", 12), "a header of 4294967295 bytes"},
  };
  for (const auto& bad : cases) {
    write_file_atomic(folder / "a.npy", bad.content);
    const Error error = error_of([&] { NpyFile::open(folder / "a.npy"); });
    EXPECT_EQ(error.code(), ExitCode::bad_data);
    EXPECT_THAT(error.line(), HasSubstr(bad.reason));
    EXPECT_THAT(error.line(), HasSubstr("a.npy"));
  }
}

}  // namespace
}  // namespace megadict
