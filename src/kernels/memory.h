// Memory of CPU tensors and of the kernels' buffers. A step asks for the same sizes again and
// again: what a tensor gives back is kept for the next of its size, so that a step in its steady
// state gets nothing from the system. Blocks of 2 MiB and more ask for huge pages: rows picked at
// random out of gigabytes cost a page walk each otherwise.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

namespace megadict {

// From here on, for the whole process; before the first tensor. Tests go without: what reuses
// memory hides mistakes from a sanitizer.
void keep_tensor_memory();

struct MemoryUse {
  int64_t held = 0;         // bytes got from the system and not given back
  int64_t free = 0;         // of these, bytes that no tensor uses
  int64_t from_system = 0;  // blocks of 64 KiB or more got so far
};
MemoryUse memory_use();

// Gives what no tensor uses back to the system: after the start, an evaluation, a checkpoint.
void release_free_memory();

at::Tensor empty_bytes(int64_t count);  // u8

// An array of plain values in such memory, uninitialised.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) : size_(size), memory_(empty_bytes(size * int64_t{sizeof(T)})) {
    data_ = static_cast<T*>(memory_.mutable_data_ptr());
  }
  Buffer(int64_t size, T value) : Buffer(size) { std::fill(begin(), end(), value); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  int64_t size_ = 0;
  at::Tensor memory_;
  T* data_ = nullptr;
};

}  // namespace megadict
