#include "io/raw_read.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/error.h"

namespace megadict {

namespace {

constexpr size_t kPiece = size_t{1} << 20, kDirectPiece = size_t{8} << 20, kAlignment = 4096;

[[noreturn]] void fail_read(const std::string& path) {
  fail(ExitCode::bad_data, fmt::format("cannot read '{}': {}", path, std::strerror(errno)));
}

class OpenFile {
 public:
  OpenFile(const std::string& path, int more_flags)
      : descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | more_flags)) {}
  ~OpenFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  int get() const { return descriptor_; }
  bool ok() const { return descriptor_ >= 0; }

 private:
  int descriptor_;
};

// Seconds to read until the end; below 0 where the first read is refused.
double read_to_end(const OpenFile& file, size_t piece, const std::string& path) {
  const std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(kAlignment, piece),
                                                           std::free);
  std::memset(memory.get(), 0, piece);  // its pages come before the clock starts
  const double start = seconds_now();
  for (bool first = true;; first = false) {
    const ssize_t got = ::read(file.get(), memory.get(), piece);
    if (got == 0) return seconds_now() - start;
    if (got > 0) continue;
    if (first && errno == EINVAL) return -1;
    if (errno != EINTR) fail_read(path);
  }
}

}  // namespace

double read_in_order(const std::string& path) {
  const OpenFile file(path, 0);
  if (!file.ok()) fail_read(path);
  ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
  return read_to_end(file, kPiece, path);
}

std::optional<double> read_past_cache(const std::string& path) {
  const OpenFile file(path, O_DIRECT);
  if (!file.ok() && errno == EINVAL) return std::nullopt;
  if (!file.ok()) fail_read(path);
  const double seconds = read_to_end(file, kDirectPiece, path);
  return seconds < 0 ? std::nullopt : std::optional(seconds);
}

void drop_from_cache(const std::string& path) {
  const OpenFile file(path, 0);
  if (!file.ok() || ::fdatasync(file.get()) != 0) fail_read(path);
  ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
}

int64_t cached_bytes(const std::string& path) {
  const OpenFile file(path, 0);
  struct stat facts = {};
  if (!file.ok() || ::fstat(file.get(), &facts) != 0) fail_read(path);
  const auto bytes = static_cast<size_t>(facts.st_size);
  if (bytes == 0) return 0;
  void* const map = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file.get(), 0);
  if (map == MAP_FAILED) fail_read(path);
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> present((bytes + page - 1) / page);
  const int status = ::mincore(map, bytes, present.data());
  ::munmap(map, bytes);
  if (status != 0) fail_read(path);
  int64_t cached = 0;
  for (unsigned char one : present) cached += (one & 1) * static_cast<int64_t>(page);
  return std::min(cached, static_cast<int64_t>(bytes));
}

}  // namespace megadict
