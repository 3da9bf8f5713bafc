// Zip archives whose entries are stored, not compressed, as PyTorch and NumPy write them; Zip64
// where an archive needs it. Archives from elsewhere are hostile: every offset is checked against
// the file, entries may not overlap, nothing is allocated before the file's size allows it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/buffer_view.h"
#include "base/range.h"
#include "io/file.h"

namespace megadict {

struct ZipEntry {
  std::string name;
  Range bytes;  // in the file
  uint32_t crc = 0;
};

class ZipFile {
 public:
  // Exit 3 with the path for whatever is wrong with the file.
  static ZipFile open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const RandomAccessFile& file() const { return file_; }
  const std::vector<ZipEntry>& entries() const { return entries_; }  // in the directory's order
  const ZipEntry* find(std::string_view name) const;                 // nullptr if absent
  // A whole small entry; exit 3 above `max_bytes`, or where its checksum differs.
  std::string read_text(const ZipEntry& entry, int64_t max_bytes) const;
  // Some of its bytes; where these are all, exit 3 if the checksum differs.
  void read(const ZipEntry& entry, Range bytes, void* to) const;

 private:
  explicit ZipFile(RandomAccessFile file) : file_(std::move(file)) {}
  RandomAccessFile file_;
  std::vector<ZipEntry> entries_;
};

// An archive under construction; nothing is visible at `path` before commit(). Data begin at
// multiples of 64, so that a reader may map them.
class ZipWriter {
 public:
  explicit ZipWriter(const std::string& path) : file_(path) {}
  // One entry, from several pieces of memory.
  void add(const std::string& name, const std::vector<ConstBufferView>& pieces);
  void add(const std::string& name, std::string_view text);
  void commit();

 private:
  struct Written {
    std::string name;
    uint64_t offset = 0, size = 0;
    uint32_t crc = 0;
  };
  void write(std::string_view text);

  AtomicFile file_;
  uint64_t position_ = 0;
  std::vector<Written> written_;
};

}  // namespace megadict
