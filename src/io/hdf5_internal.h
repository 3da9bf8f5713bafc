// Inside io only: identifiers that close themselves, the library's lock and error text, the mapping
// of element types, and what an open file holds.
#pragma once

#include <hdf5.h>

#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "base/buffer_view.h"
#include "io/hdf5_file.h"

namespace megadict::hdf5 {

// Held during every call into the library; also silences its stack print for this thread.
class Call {
 public:
  Call();

 private:
  std::lock_guard<std::recursive_mutex> lock_;
};

// What the library says about the failure just met: the system's own words where there are some
// ("No space left on device"), else the library's innermost message.
std::string last_reason();

class Id {
 public:
  Id() = default;
  Id(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  Id(Id&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Id& operator=(Id&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  ~Id() { reset(); }
  void reset();  // closes; errors are ignored
  hid_t release() { return std::exchange(id_, -1); }
  hid_t get() const { return id_; }
  bool ok() const { return id_ >= 0; }

 private:
  hid_t id_ = -1;
  herr_t (*close_)(hid_t) = nullptr;
};

// Little-endian file type, also used for memory (the program runs on little-endian machines only).
Id type_of(DType dtype);
// Our element type for a file type; empty for strings, compounds and unusual numbers.
std::optional<DType> dtype_of(hid_t type);

}  // namespace megadict::hdf5

namespace megadict {

struct Hdf5File::State {
  std::string path;
  hdf5::Id file;
  std::map<std::string, hdf5::Id> datasets;  // opened so far

  [[noreturn]] void fail_read(const std::string& what) const;
  void check_write(bool ok) const;
  hid_t dataset(const std::string& name);
};

}  // namespace megadict
