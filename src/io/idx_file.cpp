#include "io/idx_file.h"

#include <fmt/format.h>
#include <zlib.h>

#include <string_view>

#include "base/error.h"
#include "io/file.h"

namespace megadict {

namespace {

constexpr int64_t kMaxBytes = int64_t{1} << 30;
constexpr std::string_view kGzipMark = "\x1f\x8b";

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  fail(ExitCode::bad_data, fmt::format("cannot read '{}' as IDX: {}", path, why));
}

// zlib's state, released at the end.
class Inflater {
 public:
  explicit Inflater(std::string_view packed) {
    constexpr int kGzip = 16;  // added to the window's size: a gzip header, not zlib's
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
    stream_.avail_in = static_cast<uInt>(packed.size());
    ready_ = inflateInit2(&stream_, MAX_WBITS + kGzip) == Z_OK;
  }
  ~Inflater() {
    if (ready_) inflateEnd(&stream_);
  }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;

  // Appends up to `room` bytes to `to`; zlib's status.
  int step(std::string& to, size_t room) {
    if (!ready_) return Z_MEM_ERROR;
    const size_t before = to.size();
    to.resize(before + room);
    stream_.next_out = reinterpret_cast<Bytef*>(to.data() + before);
    stream_.avail_out = static_cast<uInt>(room);
    const int status = inflate(&stream_, Z_NO_FLUSH);
    to.resize(before + room - stream_.avail_out);
    return status;
  }
  size_t left() const { return stream_.avail_in; }
  std::string reason() const { return stream_.msg != nullptr ? stream_.msg : "damaged"; }

 private:
  z_stream stream_ = {};
  bool ready_ = false;
};

std::string unpack(const std::string& path, std::string_view packed) {
  constexpr size_t kPiece = size_t{1} << 20;
  Inflater inflater(packed);
  std::string bytes;
  while (true) {
    const int status = inflater.step(bytes, kPiece);
    if (static_cast<int64_t>(bytes.size()) > kMaxBytes) refuse(path, "it unpacks to over 1 GiB");
    if (status == Z_STREAM_END) break;
    if (status == Z_BUF_ERROR) refuse(path, "the gzip stream ends too early");
    if (status != Z_OK) refuse(path, fmt::format("gzip: {}", inflater.reason()));
  }
  if (inflater.left() != 0)
    refuse(path, fmt::format("{} bytes after the gzip stream", inflater.left()));
  return bytes;
}

}  // namespace

IdxArray read_idx(const std::string& path) {
  constexpr unsigned kUnsignedBytes = 8;
  std::string bytes = read_file(path, kMaxBytes);
  if (bytes.starts_with(kGzipMark)) bytes = unpack(path, bytes);
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  if (bytes.size() < 4) refuse(path, fmt::format("only {} bytes", bytes.size()));
  if (byte(0) != 0 || byte(1) != 0) refuse(path, "it does not begin with two zero bytes");
  if (byte(2) != kUnsignedBytes)
    refuse(path, fmt::format("element type {:#04x}, not unsigned bytes (0x08)", byte(2)));
  const size_t dimensions = byte(3), header = 4 + 4 * dimensions;
  if (dimensions == 0 || bytes.size() < header)
    refuse(path, fmt::format("{} dimensions in {} bytes", dimensions, bytes.size()));
  IdxArray array;
  int64_t elements = 1;
  for (size_t d = 0; d < dimensions; ++d) {
    uint32_t size = 0;
    for (size_t i = 0; i < 4; ++i) size = size << 8 | byte(4 + 4 * d + i);
    array.shape.push_back(size);
    if (size != 0 && elements > kMaxBytes / size) refuse(path, "its shape is over 1 GiB");
    elements *= size;
  }
  const auto found = static_cast<int64_t>(bytes.size() - header);
  if (found != elements)
    refuse(path, fmt::format("{} bytes of data, its header says {}", found, elements));
  array.values.assign(bytes.begin() + static_cast<std::ptrdiff_t>(header), bytes.end());
  return array;
}

}  // namespace megadict
