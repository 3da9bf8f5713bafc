#include "base/background.h"

#include <atomic>
#include <thread>

namespace megadict {

namespace {

std::atomic<void (*)()> background = nullptr;
std::thread::id its_thread;  // written while `background` is null

}  // namespace

void give_way() {
  void (*const work)() = background.load(std::memory_order_acquire);
  if (work != nullptr && std::this_thread::get_id() == its_thread) work();
}

void set_background(void (*work)()) {
  background.store(nullptr);
  its_thread = std::this_thread::get_id();
  background.store(work, std::memory_order_release);
}

}  // namespace megadict
