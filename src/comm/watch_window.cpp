#include "comm/watch_window.h"

#include <mpi.h>
#include <unistd.h>

#include <cstring>
#include <new>

#include "comm/backends.h"

namespace megadict {

void SharedText::set(const char* text) {
  char bytes[sizeof(words_)] = "";
  std::strncpy(bytes, text, sizeof(bytes) - 1);
  for (size_t i = 0; i < words_.size(); ++i) {
    uint64_t word;
    std::memcpy(&word, bytes + i * sizeof(word), sizeof(word));
    words_[i].store(word, std::memory_order_relaxed);
  }
}

std::string SharedText::get() const {
  char bytes[sizeof(words_) + 1] = "";
  for (size_t i = 0; i < words_.size(); ++i) {
    const uint64_t word = words_[i].load(std::memory_order_relaxed);
    std::memcpy(bytes + i * sizeof(word), &word, sizeof(word));
  }
  return bytes;
}

int64_t RankSlot::arrivals_at(uint64_t communicator) const {
  for (const Arrivals& entry : arrivals)
    if (entry.communicator.load() == communicator) return entry.count.load();
  return -1;
}

void RankSlot::arrive(uint64_t communicator, int64_t count) {
  Arrivals *free = nullptr, *over = nullptr;
  for (Arrivals& entry : arrivals) {
    const uint64_t id = entry.communicator.load(std::memory_order_relaxed);
    if (id == communicator) return entry.count.store(count);
    if (id == 0 && free == nullptr) free = &entry;
    if (entry.over && over == nullptr) over = &entry;
  }
  if (free == nullptr) free = over;
  if (free == nullptr) return;  // more communicators than entries: this one is not compared
  free->communicator.store(0);
  free->over = false;
  free->count.store(count);
  free->communicator.store(communicator);
}

void RankSlot::forget(uint64_t communicator) {
  for (Arrivals& entry : arrivals)
    if (entry.communicator.load(std::memory_order_relaxed) == communicator) entry.over = true;
}

struct WatchWindow::Shared {
  MPI_Comm node = MPI_COMM_NULL;
  MPI_Win window = MPI_WIN_NULL;
};

WatchWindow::WatchWindow() {
  int world_rank = 0;
  if (mpi_running()) {
    shared_ = std::make_unique<Shared>();
    MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks_);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, world_rank, MPI_INFO_NULL,
                        &shared_->node);
    int node_rank = 0, node_ranks = 1;
    MPI_Comm_rank(shared_->node, &node_rank);
    MPI_Comm_size(shared_->node, &node_ranks);
    void* memory = nullptr;
    MPI_Win_allocate_shared(sizeof(RankSlot), 1, MPI_INFO_NULL, shared_->node, &memory,
                            &shared_->window);
    new (memory) RankSlot;
    for (int r = 0; r < node_ranks; ++r) {
      MPI_Aint bytes = 0;
      int unit = 0;
      void* slot = nullptr;
      MPI_Win_shared_query(shared_->window, r, &bytes, &unit, &slot);
      slots_.push_back(static_cast<RankSlot*>(slot));
    }
    mine_ = static_cast<size_t>(node_rank);
  } else {
    alone_ = std::make_unique<RankSlot>();
    slots_.push_back(alone_.get());
  }
  mine().world_rank = world_rank;
  mine().pid = getpid();
}

void WatchWindow::meet() {
  if (shared_ != nullptr) MPI_Barrier(MPI_COMM_WORLD);
}

WatchWindow::~WatchWindow() {
  if (shared_ == nullptr || !mpi_running()) return;
  MPI_Win_free(&shared_->window);
  MPI_Comm_free(&shared_->node);
}

}  // namespace megadict
