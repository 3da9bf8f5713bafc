#include "data/byte_pool.h"

#include <cstdlib>
#include <new>
#include <utility>

namespace megadict {

namespace {

constexpr size_t kBlockBytes = size_t{16} << 20, kLine = 64;

size_t rounded_up(size_t bytes, size_t to) {
  return (bytes + to - 1) / to * to;
}

}  // namespace

Bytes::Bytes(size_t size) {
  *this = BytePool::of(size)->take(size);
  std::fill(data_, data_ + size_, std::byte{0});
}

Bytes::~Bytes() {
  if (pool_) pool_->give_back(data_);
}

std::shared_ptr<BytePool> BytePool::of(size_t piece_bytes) {
  const size_t padded = rounded_up(std::max<size_t>(piece_bytes, 1), kLine);
  return std::shared_ptr<BytePool>(new BytePool(padded));
}

void BytePool::Release::operator()(std::byte* block) const {
  std::free(block);
}

void BytePool::add_block() {
  // A small piece alone is a small data set or a test: it needs no block of many.
  const size_t pieces = blocks_.empty() ? 1 : std::max<size_t>(1, kBlockBytes / piece_bytes_);
  // Without huge pages: looking for them costs the first windows more than they save later.
  auto* const block = static_cast<std::byte*>(std::aligned_alloc(kLine, pieces * piece_bytes_));
  if (block == nullptr) throw std::bad_alloc();
  blocks_.emplace_back(block);
  for (size_t i = pieces; i-- > 0;) free_.push_back(block + i * piece_bytes_);
}

Bytes BytePool::take(size_t size) {
  const std::lock_guard lock(mutex_);
  if (free_.empty()) add_block();
  Bytes taken;
  taken.data_ = free_.back();
  taken.size_ = size;
  taken.pool_ = shared_from_this();
  free_.pop_back();
  return taken;
}

void BytePool::give_back(std::byte* piece) {
  const std::lock_guard lock(mutex_);
  free_.push_back(piece);
}

}  // namespace megadict
