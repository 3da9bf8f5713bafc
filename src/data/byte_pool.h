// Memory for chunks and batches that is used again and again: fresh memory costs more than reading
// into it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace megadict {

class BytePool;

// A run of bytes that belongs to nobody else; what came from a pool goes back to it in the end.
class Bytes {
 public:
  Bytes() = default;
  explicit Bytes(size_t size);  // zeros, of no pool
  Bytes(Bytes&& other) noexcept { swap(other); }
  Bytes& operator=(Bytes&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Bytes();

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  const std::byte* begin() const { return data_; }
  const std::byte* end() const { return data_ + size_; }
  size_t size() const { return size_; }
  bool operator==(const Bytes& other) const {
    return std::equal(begin(), end(), other.begin(), other.end());
  }

 private:
  friend class BytePool;
  void swap(Bytes& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(pool_, other.pool_);
  }
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::shared_ptr<BytePool> pool_;
};

// Pieces of one size, cut from larger blocks. For several threads; lives as long as its last piece.
class BytePool : public std::enable_shared_from_this<BytePool> {
 public:
  static std::shared_ptr<BytePool> of(size_t piece_bytes);
  Bytes take(size_t size);  // at most piece_bytes, uninitialised

 private:
  friend class Bytes;
  struct Release {
    void operator()(std::byte* block) const;
  };
  explicit BytePool(size_t piece_bytes) : piece_bytes_(piece_bytes) {}
  void add_block();
  void give_back(std::byte* piece);

  const size_t piece_bytes_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<std::byte, Release>> blocks_;
  std::vector<std::byte*> free_;
};

}  // namespace megadict
