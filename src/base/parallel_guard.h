// An exception that leaves an OpenMP region ends the process without a line. Inside, run() keeps
// the first one of all threads; after the region, rethrow() passes it on.
#pragma once

#include <atomic>
#include <exception>
#include <mutex>

namespace megadict {

class ParallelGuard {
 public:
  // Does nothing once another run() has failed: the region's result is lost anyway.
  template <class Work>
  void run(Work&& work) noexcept {
    if (failed_.load(std::memory_order_relaxed)) return;
    try {
      work();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!failed_.exchange(true)) first_ = std::current_exception();
    }
  }

  void rethrow() const {
    if (first_ != nullptr) std::rethrow_exception(first_);
  }

 private:
  std::atomic<bool> failed_ = false;
  std::mutex mutex_;
  std::exception_ptr first_;
};

}  // namespace megadict
