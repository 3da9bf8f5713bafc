#include "io/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <glob.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <random>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"

namespace megadict {

namespace fs = std::filesystem;

namespace {

[[noreturn]] void fail_write(const std::string& path, int error) {
  fail(ExitCode::error, fmt::format("cannot write '{}': {}", path, std::strerror(error)),
       error == ENOSPC ? "free some space or choose another folder" : "");
}

[[noreturn]] void fail_read(const std::string& path, int error) {
  fail(ExitCode::bad_data, fmt::format("cannot read '{}': {}", path, std::strerror(error)));
}

// fsync of a folder is refused by some network file systems; they have nothing to flush there.
void sync_path(const std::string& path, int flags) {
  const int descriptor = ::open(path.c_str(), flags | O_CLOEXEC);
  if (descriptor < 0) fail_write(path, errno);
  const int error = ::fsync(descriptor) == 0 ? 0 : errno;
  ::close(descriptor);
  const bool unsupported = (flags & O_DIRECTORY) && (error == EINVAL || error == ENOTSUP);
  if (error != 0 && !unsupported) fail_write(path, error);
}

// A new file beside `path`, under a name that nobody else has: process numbers repeat, on other
// hosts and after a crash.
int create_beside(const std::string& path, std::string& name) {
  std::random_device random;
  for (;;) {
    name = fmt::format("{}.tmp-{:08x}", path, random());
    const int made = ::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (made >= 0 || errno != EEXIST) return made;
  }
}

}  // namespace

bool file_exists(const std::string& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

bool folder_exists(const std::string& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

int64_t file_size(const std::string& path) {
  struct stat facts = {};
  if (::stat(path.c_str(), &facts) != 0) fail_read(path, errno);
  return facts.st_size;
}

std::string read_file(const std::string& path, int64_t max_bytes) {
  const RandomAccessFile file(path);
  if (file.size() > max_bytes)
    fail(ExitCode::bad_data, fmt::format("cannot read '{}': {} bytes, at most {} are expected",
                                         path, file.size(), max_bytes));
  std::string content(static_cast<size_t>(file.size()), '\0');
  file.read(0, content.data(), content.size());
  return content;
}

std::vector<std::string> list_files(const std::string& folder, const std::string& suffix) {
  std::error_code error;
  std::vector<std::string> found;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.size() >= suffix.size() && name.ends_with(suffix)) found.push_back(it->path());
  }
  if (error) fail_read(folder, error.value());
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<std::string> glob_files(const std::string& pattern) {
  glob_t result = {};
  const int status = ::glob(pattern.c_str(), GLOB_NOSORT, nullptr, &result);
  std::vector<std::string> found(result.gl_pathv, result.gl_pathv + result.gl_pathc);
  ::globfree(&result);
  if (status != 0 && status != GLOB_NOMATCH)
    fail(ExitCode::bad_data, fmt::format("cannot list '{}'", pattern));
  std::sort(found.begin(), found.end());
  return found;
}

void make_folders(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) fail_write(path, error.value());
}

void remove_file(const std::string& path) {
  std::error_code error;
  fs::remove(path, error);
  if (error) fail_write(path, error.value());
}

std::string parent_folder(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

std::string file_name(const std::string& path) {
  return fs::path(path).filename().string();
}

void sync_folder(const std::string& path) {
  sync_path(path, O_RDONLY | O_DIRECTORY);
}

void sync_file(const std::string& path) {
  sync_path(path, O_RDONLY);
}

void rename_durably(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) fail_write(to, errno);
  sync_folder(parent_folder(to));
}

void write_fully(int descriptor, const void* data, size_t bytes, const std::string& path) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(descriptor, next, bytes);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_write(path, errno);
    next += written;
    bytes -= static_cast<size_t>(written);
  }
}

AtomicFile::AtomicFile(const std::string& path) : path_(path) {
  struct stat facts = {};
  const bool exists = ::stat(path.c_str(), &facts) == 0;
  if (exists && S_ISDIR(facts.st_mode)) fail_write(path_, EISDIR);
  const bool special = exists && !S_ISREG(facts.st_mode);
  if (special)
    descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
  else
    descriptor_ = create_beside(path_, temporary_);
  if (descriptor_ < 0) fail_write(path_, errno);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, size_t bytes) {
  write_fully(descriptor_, data, bytes, path_);
}

void AtomicFile::commit() {
  if (temporary_.empty()) {
    if (::close(std::exchange(descriptor_, -1)) != 0) fail_write(path_, errno);
    return;
  }
  if (::fsync(descriptor_) != 0) fail_write(path_, errno);
  const int closed = ::close(std::exchange(descriptor_, -1));
  if (closed != 0) {  // a network file system may report a full disk only here
    const int error = errno;
    ::unlink(temporary_.c_str());
    fail_write(path_, error);
  }
  rename_durably(temporary_, path_);
}

void write_file_atomic(const std::string& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

FolderLock::~FolderLock() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

FolderLock::FolderLock(FolderLock&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)) {}

FolderLock& FolderLock::operator=(FolderLock&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

bool FolderLock::take(const std::string& folder, double patience_s) {
  const int opened = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (opened < 0) fail_write(folder, errno);
  const double end_s = seconds_now() + patience_s;
  const auto lock = [&] { return ::flock(opened, LOCK_EX | LOCK_NB) == 0 ? 0 : errno; };
  int error = lock();
  for (; error == EWOULDBLOCK && seconds_now() < end_s; error = lock())
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  if (error == EWOULDBLOCK) {
    ::close(opened);
    return false;
  }
  if (error != 0)
    note(fmt::format("note: '{}' cannot be locked ({}): nothing keeps a second process out", folder,
                     std::strerror(error)));
  descriptor_ = opened;
  return true;
}

bool FolderLock::is_held(const std::string& folder) {
  const int opened = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (opened < 0) return false;
  const bool held = ::flock(opened, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  ::close(opened);
  return held;
}

RandomAccessFile::RandomAccessFile(const std::string& path) : path_(path) {
  // Without O_NONBLOCK a pipe would wait for a writer here.
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) fail_read(path, errno);
  struct stat facts = {};
  const int error = ::fstat(descriptor_, &facts) != 0 ? errno : S_ISDIR(facts.st_mode) ? EISDIR : 0;
  if (error != 0 || !S_ISREG(facts.st_mode)) {
    ::close(descriptor_);
    if (error != 0) fail_read(path, error);
    fail(ExitCode::bad_data, fmt::format("cannot read '{}': not a regular file", path));
  }
  size_ = facts.st_size;
}

RandomAccessFile::~RandomAccessFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

RandomAccessFile::RandomAccessFile(RandomAccessFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_(other.size_) {}

RandomAccessFile& RandomAccessFile::operator=(RandomAccessFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(size_, other.size_);
  return *this;
}

void RandomAccessFile::announce(int64_t offset, int64_t bytes) const {
  // In pieces, for Linux cuts one request to the read-ahead of the device, often 128 KiB.
  constexpr int64_t kPiece = 128 << 10;
  const int64_t end = std::min(size_, offset + bytes);
  for (int64_t at = std::max<int64_t>(0, offset); at < end; at += kPiece)
    ::posix_fadvise(descriptor_, at, std::min(kPiece, end - at), POSIX_FADV_WILLNEED);
}

void RandomAccessFile::read(int64_t offset, void* to, size_t bytes) const {
  char* next = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t got = ::pread(descriptor_, next, bytes, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_read(path_, errno);
    if (got == 0)
      fail(ExitCode::bad_data, fmt::format("cannot read '{}': it ends at byte {}, {} more were "
                                           "expected",
                                           path_, offset, bytes));
    next += got;
    offset += got;
    bytes -= static_cast<size_t>(got);
  }
}

}  // namespace megadict
