#include "io/zip_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "io/crc32.h"

namespace megadict {

namespace {

constexpr uint32_t kLocalHeader = 0x04034b50, kCentralHeader = 0x02014b50;
constexpr uint32_t kEnd = 0x06054b50, kEnd64 = 0x06064b50, kEnd64Locator = 0x07064b50;
constexpr int64_t kEndBytes = 22, kEnd64Bytes = 56, kLocatorBytes = 20;
constexpr int64_t kLocalBytes = 30, kCentralBytes = 46;
constexpr int64_t kMaxDirectoryBytes = 64 << 20;
constexpr uint16_t kZip64Field = 1, kPaddingField = 0x4246;  // "FB", as PyTorch pads
constexpr uint64_t kMax32 = 0xFFFFFFFF, kMax16 = 0xFFFF;
constexpr uint64_t kAlignment = 64;
constexpr uint16_t kDate = (1 << 5) | 1;  // the first day that the format can say

[[noreturn]] void refuse(const std::string& path, const std::string& why,
                         const std::string& hint = "") {
  fail(ExitCode::bad_data, fmt::format("cannot read '{}' as a zip archive: {}", path, why), hint);
}

// `bytes` little-endian bytes of `text` at `at`; the caller has checked that they are there.
uint64_t number_at(std::string_view text, size_t at, size_t bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; ++i)
    value |= static_cast<uint64_t>(static_cast<unsigned char>(text[at + i])) << (8 * i);
  return value;
}

void put(std::string& to, uint64_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) to += static_cast<char>((value >> (8 * i)) & 0xFF);
}

std::string read_span(const RandomAccessFile& file, int64_t offset, int64_t bytes) {
  std::string text(static_cast<size_t>(bytes), '\0');
  file.read(offset, text.data(), text.size());
  return text;
}

// Where the central directory lies.
struct Directory {
  int64_t begin = 0, bytes = 0;
  uint64_t entries = 0;
};

// The end record is the last thing in the file but for a comment.
int64_t find_end(const RandomAccessFile& file, std::string& tail) {
  if (file.size() < kEndBytes) refuse(file.path(), fmt::format("only {} bytes", file.size()));
  const int64_t bytes = std::min<int64_t>(file.size(), kEndBytes + 65535);
  tail = read_span(file, file.size() - bytes, bytes);
  for (int64_t at = bytes - kEndBytes; at >= 0; --at)
    if (number_at(tail, static_cast<size_t>(at), 4) == kEnd) return at;
  refuse(file.path(), "it has no end record: truncated, or no archive");
}

std::optional<Directory> find_directory64(const RandomAccessFile& file, int64_t end) {
  if (end < kLocatorBytes) return std::nullopt;
  const std::string locator = read_span(file, end - kLocatorBytes, kLocatorBytes);
  if (number_at(locator, 0, 4) != kEnd64Locator) return std::nullopt;
  const uint64_t at = number_at(locator, 8, 8);
  if (at > static_cast<uint64_t>(end - kLocatorBytes) ||
      end - kLocatorBytes - static_cast<int64_t>(at) < kEnd64Bytes)
    refuse(file.path(), "its Zip64 end record lies outside of the file");
  const std::string record = read_span(file, static_cast<int64_t>(at), kEnd64Bytes);
  if (number_at(record, 0, 4) != kEnd64) refuse(file.path(), "it has no Zip64 end record");
  const uint64_t bytes = number_at(record, 40, 8), begin = number_at(record, 48, 8);
  if (bytes > at || begin > at - bytes)
    refuse(file.path(), "its directory lies outside of the file");
  return Directory{static_cast<int64_t>(begin), static_cast<int64_t>(bytes),
                   number_at(record, 32, 8)};
}

Directory find_directory(const RandomAccessFile& file) {
  std::string tail;
  const int64_t in_tail = find_end(file, tail);
  const auto at = static_cast<size_t>(in_tail);
  const int64_t end = file.size() - static_cast<int64_t>(tail.size()) + in_tail;
  const uint64_t entries = number_at(tail, at + 10, 2), bytes = number_at(tail, at + 12, 4);
  const uint64_t begin = number_at(tail, at + 16, 4);
  if (const auto found = find_directory64(file, end)) return *found;
  if (bytes > static_cast<uint64_t>(end) || begin > static_cast<uint64_t>(end) - bytes)
    refuse(file.path(), "its directory lies outside of the file");
  return {static_cast<int64_t>(begin), static_cast<int64_t>(bytes), entries};
}

// The 64-bit numbers that stand in for those of a directory entry that are all ones, in order.
void read_zip64_field(const std::string& path, std::string_view extra,
                      const std::vector<uint64_t*>& wide) {
  while (extra.size() >= 4) {
    const uint64_t id = number_at(extra, 0, 2), bytes = number_at(extra, 2, 2);
    if (bytes > extra.size() - 4) refuse(path, "an extra field is longer than its entry");
    std::string_view field = extra.substr(4, bytes);
    extra.remove_prefix(4 + bytes);
    if (id != kZip64Field) continue;
    for (uint64_t* value : wide) {
      if (field.size() < 8) refuse(path, "a Zip64 field is too short");
      *value = number_at(field, 0, 8);
      field.remove_prefix(8);
    }
    return;
  }
  refuse(path, "a Zip64 field is missing");
}

// One entry of the directory; `rest` begins with it and ends behind it.
ZipEntry next_entry(const RandomAccessFile& file, std::string_view& rest, int64_t data_end) {
  const std::string& path = file.path();
  if (rest.size() < static_cast<size_t>(kCentralBytes) || number_at(rest, 0, 4) != kCentralHeader)
    refuse(path, "its directory is damaged");
  const uint64_t flags = number_at(rest, 8, 2), method = number_at(rest, 10, 2);
  const size_t name = number_at(rest, 28, 2), extra = number_at(rest, 30, 2);
  const size_t comment = number_at(rest, 32, 2), all = kCentralBytes + name + extra + comment;
  if (rest.size() < all) refuse(path, "its directory is damaged");
  ZipEntry entry;
  entry.name = std::string(rest.substr(kCentralBytes, name));
  entry.crc = static_cast<uint32_t>(number_at(rest, 16, 4));
  uint64_t stored = number_at(rest, 20, 4), size = number_at(rest, 24, 4);
  uint64_t offset = number_at(rest, 42, 4);
  std::vector<uint64_t*> wide;
  for (uint64_t* value : {&size, &stored, &offset})
    if (*value == kMax32) wide.push_back(value);
  if (!wide.empty()) read_zip64_field(path, rest.substr(kCentralBytes + name, extra), wide);
  rest.remove_prefix(all);
  if ((flags & 1) != 0) refuse(path, fmt::format("'{}' is encrypted", entry.name));
  if (method != 0)
    refuse(path, fmt::format("'{}' is compressed", entry.name), "store it without compression");
  if (stored != size) refuse(path, fmt::format("'{}' has two sizes", entry.name));
  const auto outside = [&] {
    refuse(path, fmt::format("'{}' lies outside of the file: truncated", entry.name));
  };
  if (offset > static_cast<uint64_t>(data_end) ||
      data_end - static_cast<int64_t>(offset) < kLocalBytes)
    outside();
  const std::string local = read_span(file, static_cast<int64_t>(offset), kLocalBytes);
  if (number_at(local, 0, 4) != kLocalHeader)
    refuse(path, fmt::format("'{}' has no header", entry.name));
  const uint64_t begin = offset + kLocalBytes + number_at(local, 26, 2) + number_at(local, 28, 2);
  if (begin > static_cast<uint64_t>(data_end) || size > static_cast<uint64_t>(data_end) - begin)
    outside();
  entry.bytes = {static_cast<int64_t>(begin), static_cast<int64_t>(begin + size)};
  return entry;
}

void refuse_overlaps(const std::string& path, const std::vector<ZipEntry>& entries) {
  std::vector<const ZipEntry*> order;
  for (const ZipEntry& entry : entries)
    if (!entry.bytes.empty()) order.push_back(&entry);
  std::sort(order.begin(), order.end(),
            [](const auto* a, const auto* b) { return a->bytes.begin < b->bytes.begin; });
  for (size_t i = 1; i < order.size(); ++i)
    if (order[i]->bytes.begin < order[i - 1]->bytes.end)
      refuse(path, fmt::format("'{}' and '{}' overlap", order[i - 1]->name, order[i]->name));
}

}  // namespace

ZipFile ZipFile::open(const std::string& path) {
  ZipFile opened{RandomAccessFile(path)};
  const Directory directory = find_directory(opened.file_);
  if (directory.bytes > kMaxDirectoryBytes)
    refuse(path, fmt::format("a directory of {} bytes", directory.bytes));
  const std::string text = read_span(opened.file_, directory.begin, directory.bytes);
  std::string_view rest = text;
  while (!rest.empty() && opened.entries_.size() < directory.entries)
    opened.entries_.push_back(next_entry(opened.file_, rest, directory.begin));
  if (opened.entries_.size() != directory.entries)
    refuse(path,
           fmt::format("it holds {} of {} entries", opened.entries_.size(), directory.entries));
  refuse_overlaps(path, opened.entries_);
  return opened;
}

const ZipEntry* ZipFile::find(std::string_view name) const {
  for (const ZipEntry& entry : entries_)
    if (entry.name == name) return &entry;
  return nullptr;
}

std::string ZipFile::read_text(const ZipEntry& entry, int64_t max_bytes) const {
  const int64_t size = entry.bytes.size();
  if (size > max_bytes)
    refuse(path(),
           fmt::format("'{}' has {} bytes, at most {} are read", entry.name, size, max_bytes));
  std::string text(static_cast<size_t>(size), '\0');
  read(entry, {0, size}, text.data());
  return text;
}

void ZipFile::read(const ZipEntry& entry, Range bytes, void* to) const {
  if (bytes.begin < 0 || bytes.end > entry.bytes.size() || bytes.end < bytes.begin)
    fail(ExitCode::error,
         fmt::format("bytes {} to {} of '{}' in '{}'", bytes.begin, bytes.end, entry.name, path()));
  const auto count = static_cast<size_t>(bytes.size());
  file_.read(entry.bytes.begin + bytes.begin, to, count);
  if (bytes.size() == entry.bytes.size() && crc32(0, to, count) != entry.crc)
    refuse(path(), fmt::format("the checksum of '{}' differs: damaged", entry.name));
}

// ---- writing -----------------------------------------------------------------------------------

namespace {

// Sizes of an entry that 32 bits cannot say go into an extra field.
std::string zip64_field(const std::vector<uint64_t>& values) {
  std::string field;
  if (values.empty()) return field;
  put(field, kZip64Field, 2);
  put(field, 8 * values.size(), 2);
  for (uint64_t value : values) put(field, value, 8);
  return field;
}

// What local and central headers share: version, flags, method, time, date, checksum, sizes,
// lengths.
std::string common_fields(uint32_t crc, uint64_t size, size_t name, size_t extra, bool wide) {
  std::string text;
  put(text, wide ? 45 : 20, 2);
  put(text, 0, 2);
  put(text, 0, 2);
  put(text, 0, 2);
  put(text, kDate, 2);
  put(text, crc, 4);
  put(text, wide ? kMax32 : size, 4);
  put(text, wide ? kMax32 : size, 4);
  put(text, name, 2);
  put(text, extra, 2);
  return text;
}

// Brings the data behind a header that ends at `position` without it to the next boundary.
std::string padding_field(uint64_t position) {
  const uint64_t at = position + 4;
  const uint64_t bytes = (kAlignment - at % kAlignment) % kAlignment;
  std::string field;
  put(field, kPaddingField, 2);
  put(field, bytes, 2);
  return field + std::string(bytes, 'Z');
}

}  // namespace

void ZipWriter::write(std::string_view text) {
  file_.write(text);
  position_ += text.size();
}

void ZipWriter::add(const std::string& name, const std::vector<ConstBufferView>& pieces) {
  Written entry{name, position_, 0, 0};
  for (const ConstBufferView& piece : pieces) {
    entry.crc = crc32(entry.crc, piece.data, piece.bytes());
    entry.size += piece.bytes();
  }
  const bool wide = entry.size >= kMax32;
  std::string extra = wide ? zip64_field({entry.size, entry.size}) : "";
  extra += padding_field(position_ + kLocalBytes + name.size() + extra.size());
  std::string header;
  put(header, kLocalHeader, 4);
  header += common_fields(entry.crc, entry.size, name.size(), extra.size(), wide);
  write(header + name + extra);
  for (const ConstBufferView& piece : pieces) {
    file_.write(piece.data, piece.bytes());
    position_ += piece.bytes();
  }
  written_.push_back(entry);
}

void ZipWriter::add(const std::string& name, std::string_view text) {
  add(name, {ConstBufferView{text.data(), static_cast<int64_t>(text.size()), DType::u8}});
}

void ZipWriter::commit() {
  const uint64_t begin = position_;
  for (const Written& entry : written_) {
    const bool wide = entry.size >= kMax32, far = entry.offset >= kMax32;
    std::vector<uint64_t> values;
    if (wide) values = {entry.size, entry.size};
    if (far) values.push_back(entry.offset);
    const std::string extra = zip64_field(values);
    std::string header;
    put(header, kCentralHeader, 4);
    put(header, 45, 2);
    header += common_fields(entry.crc, entry.size, entry.name.size(), extra.size(), wide);
    put(header, 0, 2);  // comment
    put(header, 0, 2);  // disk
    put(header, 0, 2);  // attributes
    put(header, 0, 4);
    put(header, far ? kMax32 : entry.offset, 4);
    write(header + entry.name + extra);
  }
  const uint64_t bytes = position_ - begin, count = written_.size(), end64 = position_;
  const bool wide = begin >= kMax32 || bytes >= kMax32 || count >= kMax16;
  std::string end;
  if (wide) {
    put(end, kEnd64, 4);
    put(end, kEnd64Bytes - 12, 8);
    put(end, 45, 2);
    put(end, 45, 2);
    put(end, 0, 4);
    put(end, 0, 4);
    for (uint64_t value : {count, count, bytes, begin}) put(end, value, 8);
    put(end, kEnd64Locator, 4);
    put(end, 0, 4);
    put(end, end64, 8);
    put(end, 1, 4);
  }
  put(end, kEnd, 4);
  put(end, 0, 4);
  for (int i = 0; i < 2; ++i) put(end, wide ? kMax16 : count, 2);
  put(end, wide ? kMax32 : bytes, 4);
  put(end, wide ? kMax32 : begin, 4);
  put(end, 0, 2);
  write(end);
  file_.commit();
}

}  // namespace megadict
