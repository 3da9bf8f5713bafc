// IDX as hostile input: whatever is wrong is exit 3 with the path.
#include "io/idx_file.h"

#include <gmock/gmock.h>
#include <zlib.h>

#include "base/error.h"
#include "io/file.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using std::string_literals::operator""s;
using test::TempFolder;

const std::string kTwoByThree = "\0\0\x08\x02\0\0\0\x02\0\0\0\x03"s + "abcdef";

std::string gzipped(const std::string& bytes) {
  z_stream stream = {};
  deflateInit2(&stream, Z_BEST_SPEED, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY);
  std::string packed(bytes.size() + 1024, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  packed.resize(packed.size() - stream.avail_out);
  deflateEnd(&stream);
  return packed;
}

void expect_read(const std::string& content) {
  const TempFolder folder;
  const std::string path = folder / "images";
  write_file_atomic(path, content);
  const IdxArray array = read_idx(path);
  EXPECT_THAT(array.shape, testing::ElementsAre(2, 3));
  EXPECT_EQ(std::string(array.values.begin(), array.values.end()), "abcdef");
}

void expect_refused(const std::string& content, const std::string& why) {
  const TempFolder folder;
  const std::string path = folder / "images.gz";
  write_file_atomic(path, content);
  const Error error = test::error_of([&] { read_idx(path); });
  EXPECT_EQ(error.code(), ExitCode::bad_data) << why;
  EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr(path), testing::HasSubstr(why)));
}

TEST(IdxFile, PlainAndGzipped) {
  expect_read(kTwoByThree);
  expect_read(gzipped(kTwoByThree));
}

TEST(IdxFile, LargerThanAPiece) {
  const TempFolder folder;
  const std::string path = folder / "large";
  constexpr size_t kCount = (size_t{3} << 20) + 17;
  std::string content = "\0\0\x08\x01\0\x30\0\x11"s;
  for (size_t i = 0; i < kCount; ++i) content += static_cast<char>(i * 2654435761u >> 24);
  write_file_atomic(path, gzipped(content));
  const IdxArray array = read_idx(path);
  ASSERT_EQ(array.values.size(), kCount);
  EXPECT_EQ(array.values.back(), static_cast<uint8_t>(content.back()));
}

TEST(IdxFile, Absent) {
  const Error error = test::error_of([] { read_idx("no such file"); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
}

TEST(IdxFile, WrongContent) {
  expect_refused("", "only 0 bytes");
  expect_refused("<html>not found</html>", "two zero bytes");
  expect_refused("\0\0\x0d\x01\0\0\0\x01wxyz"s, "element type 0x0d");
  expect_refused("\0\0\x08\0"s, "0 dimensions");
  expect_refused("\0\0\x08\x03\0\0\0\x02"s, "3 dimensions in 8 bytes");
  expect_refused(kTwoByThree.substr(0, 17), "5 bytes of data, its header says 6");
  expect_refused(kTwoByThree + "g", "7 bytes of data, its header says 6");
  expect_refused("\0\0\x08\x02\xff\xff\xff\xff\xff\xff\xff\xff"s, "over 1 GiB");
}

TEST(IdxFile, DamagedGzip) {
  const std::string packed = gzipped(kTwoByThree);
  for (const size_t kept : {size_t{2}, size_t{9}, packed.size() / 2, packed.size() - 1})
    expect_refused(packed.substr(0, kept), "ends too early");
  std::string damaged = packed;
  damaged[damaged.size() - 6] ^= 1;  // of the checksum
  expect_refused(damaged, "gzip: ");
  expect_refused(packed + "more", "4 bytes after");
}

}  // namespace
}  // namespace megadict
