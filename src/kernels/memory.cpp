#include "kernels/memory.h"

#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <sys/mman.h>

#include <bit>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>

namespace megadict {

namespace {

constexpr size_t kSmall = 64 << 10, kHuge = size_t{2} << 20, kExact = size_t{64} << 20;
constexpr size_t kHeader = 64;  // before the data: the size of the block

size_t round_up(size_t bytes, size_t to) {
  return (bytes + to - 1) / to * to;
}

// Sizes of a step vary a little (codes, touched rows): eight classes an octave let them share.
// Virtual memory that is never touched costs nothing.
size_t block_size(size_t bytes) {
  if (bytes < kSmall) return round_up(bytes, kHeader);
  if (bytes >= kExact) return round_up(bytes, kHuge);
  return round_up(bytes, std::max(std::bit_floor(bytes) / 8, size_t{4096}));
}

class KeptMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &give_back, at::Device(at::kCPU)};
    void* data = take(block_size(bytes + kHeader));
    return {data, data, &give_back, at::Device(at::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t count) const override {
    default_copy_data(to, from, count);
  }

  MemoryUse use() {
    const std::lock_guard lock(mutex_);
    return use_;
  }

  void release() {
    const std::lock_guard lock(mutex_);
    release_from(0);
  }

 private:
  // Unused blocks of at least `smallest` bytes; the lock is held.
  void release_from(size_t smallest) {
    const auto first = free_.lower_bound(smallest);
    for (auto block = first; block != free_.end(); ++block) {
      std::free(block->second);
      use_.held -= static_cast<int64_t>(block->first);
      use_.free -= static_cast<int64_t>(block->first);
    }
    free_.erase(first, free_.end());
  }

  static void give_back(void* data);

  void* take(size_t size) {
    if (size >= kSmall) {
      const std::lock_guard lock(mutex_);
      const auto found = free_.lower_bound(size);
      if (found != free_.end() && found->first <= size + size / 8) {
        void* block = found->second;
        use_.free -= static_cast<int64_t>(found->first);
        free_.erase(found);
        return static_cast<char*>(block) + kHeader;
      }
      // Large blocks of sizes that do not come back must not pile up.
      if (size >= kExact) release_from(kExact);
    }
    void* block = from_system(size);
    *static_cast<size_t*>(block) = size;
    return static_cast<char*>(block) + kHeader;
  }

  void* from_system(size_t size) {
    const bool huge = size >= kHuge;
    void* block =
        std::aligned_alloc(huge ? kHuge : kHeader, round_up(size, huge ? kHuge : kHeader));
    if (block == nullptr) {
      release();
      block = std::aligned_alloc(huge ? kHuge : kHeader, round_up(size, huge ? kHuge : kHeader));
    }
    if (block == nullptr) throw std::bad_alloc();
    if (huge) madvise(block, round_up(size, kHuge), MADV_HUGEPAGE);  // a wish
    if (size >= kSmall) {
      const std::lock_guard lock(mutex_);
      use_.held += static_cast<int64_t>(size);
      ++use_.from_system;
    }
    return block;
  }

  std::mutex mutex_;
  std::multimap<size_t, void*> free_;
  MemoryUse use_;
};

KeptMemory& kept_memory() {
  static auto* memory = new KeptMemory;  // outlives every tensor
  return *memory;
}

void KeptMemory::give_back(void* data) {
  if (data == nullptr) return;
  void* block = static_cast<char*>(data) - kHeader;
  const size_t size = *static_cast<size_t*>(block);
  if (size < kSmall) return std::free(block);
  KeptMemory& memory = kept_memory();
  const std::lock_guard lock(memory.mutex_);
  memory.free_.emplace(size, block);
  memory.use_.free += static_cast<int64_t>(size);
}

}  // namespace

void keep_tensor_memory() {
  c10::SetAllocator(at::kCPU, &kept_memory(), /*priority=*/1);
}

MemoryUse memory_use() {
  return kept_memory().use();
}

void release_free_memory() {
  kept_memory().release();
}

at::Tensor empty_bytes(int64_t count) {
  return at::empty({count}, at::kByte);
}

}  // namespace megadict
