#include "data/chunk_fetcher.h"

#include <algorithm>

#include "base/error.h"

namespace megadict {

namespace {

// Asked of the system ahead of the chunk in hand: what a fast disk delivers in some milliseconds.
constexpr size_t kAheadBytes = size_t{32} << 20;

}  // namespace

ChunkFetcher::ChunkFetcher(const ShardIndex& index)
    : index_(index),
      pool_(index),
      chunk_bytes_(largest_chunk_bytes(index)),
      memory_(BytePool::of(chunk_bytes_)),
      thread_([this] { run(); }) {}

ChunkFetcher::~ChunkFetcher() {
  stop();
  thread_.join();
}

void ChunkFetcher::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
}

void ChunkFetcher::expect(std::vector<int32_t> chunks, WindowId window) {
  std::sort(chunks.begin(), chunks.end());
  const std::lock_guard lock(mutex_);
  for (int32_t chunk : chunks) {
    const auto [entry, fresh] = entries_.try_emplace(chunk);
    entry->second.window = std::max(entry->second.window, window);
    if (fresh) queue_.push_back(chunk);
  }
  changed_.notify_all();
}

const std::byte* ChunkFetcher::get(int32_t chunk, WindowId window) {
  std::unique_lock lock(mutex_);
  const auto [found, fresh] = entries_.try_emplace(chunk);
  Entry& entry = found->second;
  entry.window = std::max(entry.window, window);
  if (fresh) {
    queue_.push_front(chunk);
    ++announced_;  // it is read at once
    changed_.notify_all();
  }
  changed_.wait(
      lock, [&] { return stop_ || entry.phase == Phase::ready || entry.phase == Phase::failed; });
  if (entry.phase == Phase::failed) std::rethrow_exception(entry.error);
  if (entry.phase != Phase::ready) fail(ExitCode::error, "the batch stream was ended");
  return entry.rows.data();
}

void ChunkFetcher::drop_before(WindowId window) {
  const std::lock_guard lock(mutex_);
  std::erase_if(entries_, [&](const auto& item) {
    return item.second.window < window && item.second.phase != Phase::reading;
  });
}

std::vector<int32_t> ChunkFetcher::take_announcements() {
  const size_t ahead = std::max<size_t>(2, kAheadBytes / chunk_bytes_);
  std::vector<int32_t> soon;
  for (; announced_ < std::min(queue_.size(), ahead); ++announced_)
    soon.push_back(queue_[announced_]);
  return soon;
}

void ChunkFetcher::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stop_ || !queue_.empty(); });
    if (stop_) return;
    const int32_t number = queue_.front();
    queue_.pop_front();
    announced_ -= std::min<size_t>(announced_, 1);
    const auto found = entries_.find(number);
    if (found == entries_.end() || found->second.phase != Phase::queued) continue;
    Entry& entry = found->second;  // stays where it is while it is being read
    entry.phase = Phase::reading;
    const std::vector<int32_t> soon = take_announcements();
    lock.unlock();
    Bytes rows = memory_->take(chunk_bytes_);
    std::exception_ptr error;
    for (int32_t next : soon) pool_.announce(chunk(next));
    try {
      pool_.read(chunk(number), rows.data());
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    entry.rows = std::move(rows);
    entry.error = error;
    entry.phase = error ? Phase::failed : Phase::ready;
    changed_.notify_all();
  }
}

}  // namespace megadict
