// Whole files: found in a fixed order, read, and written so that a reader sees the old file or the
// complete new one, never half of one, also after a crash (temporary name, fsync, rename, fsync of
// the folder).
//
// Errors: exit 3 for a file that cannot be read, exit 1 for one that cannot be written (a full disk
// included), always with the path and the system's reason.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace megadict {

bool file_exists(const std::string& path);
bool folder_exists(const std::string& path);
int64_t file_size(const std::string& path);
// The whole content; refuses files above `max_bytes`.
std::string read_file(const std::string& path, int64_t max_bytes = int64_t{1} << 30);

// Names of the entries of `folder` that end in `suffix`, with the folder in front, sorted bytewise.
std::vector<std::string> list_files(const std::string& folder, const std::string& suffix);
// Paths that match a shell pattern (*, ?, [...]), sorted bytewise.
std::vector<std::string> glob_files(const std::string& pattern);

void make_folders(const std::string& path);  // with parents; no error if present
void remove_file(const std::string& path);   // no error if absent
std::string parent_folder(const std::string& path);
std::string file_name(const std::string& path);  // without the folder

// Makes the names inside a folder durable.
void sync_folder(const std::string& path);
// Makes the content of a file that somebody else wrote durable.
void sync_file(const std::string& path);
// Renames a file or folder (over an existing file) and makes the new name durable.
void rename_durably(const std::string& from, const std::string& to);

// write(2) until everything is written; `path` is for the message.
void write_fully(int descriptor, const void* data, size_t bytes, const std::string& path);

// A file under construction. Nothing is visible at `path` before commit(); without commit() the
// temporary file is removed. A device or pipe (/dev/stdout) is written to and never replaced.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void commit();

 private:
  std::string path_, temporary_;  // "" for a device or pipe
  int descriptor_ = -1;
};

void write_file_atomic(const std::string& path, std::string_view content);

// Holds a folder for this process: as long as it lives, nobody else gets it. Nothing is written.
class FolderLock {
 public:
  FolderLock() = default;
  ~FolderLock();
  FolderLock(FolderLock&& other) noexcept;
  FolderLock& operator=(FolderLock&& other) noexcept;

  bool held() const { return descriptor_ >= 0; }
  // False where another process holds it for so long. A file system without locks is noted and let
  // pass.
  bool take(const std::string& folder, double patience_s = 0.2);
  // Whether somebody holds it just now; who takes it at that moment waits that long.
  static bool is_held(const std::string& folder);

 private:
  int descriptor_ = -1;
};

// Read-only random access; shared by threads (pread).
class RandomAccessFile {
 public:
  explicit RandomAccessFile(const std::string& path);
  ~RandomAccessFile();
  RandomAccessFile(RandomAccessFile&& other) noexcept;
  RandomAccessFile& operator=(RandomAccessFile&& other) noexcept;

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }
  // Asks the system to begin reading these bytes; what lies outside of the file is ignored.
  void announce(int64_t offset, int64_t bytes) const;
  // Exactly `bytes` bytes from `offset`; exit 3 where the file ends before.
  void read(int64_t offset, void* to, size_t bytes) const;

 private:
  std::string path_;
  int descriptor_ = -1;
  int64_t size_ = 0;
};

}  // namespace megadict
