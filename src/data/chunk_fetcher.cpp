#include "data/chunk_fetcher.h"

#include <algorithm>

#include "base/error.h"

namespace megadict {

namespace {

// Asked of the system ahead of the chunk being read: what a fast disk delivers in some
// milliseconds.
constexpr size_t kAheadBytes = size_t{64} << 20;

}  // namespace

ChunkFetcher::ChunkFetcher(const ShardIndex& index)
    : index_(index),
      to_read_(index),
      to_announce_(index),
      chunk_bytes_(largest_chunk_bytes(index)),
      ahead_(std::max<size_t>(2, kAheadBytes / chunk_bytes_)),
      memory_(BytePool::of(chunk_bytes_)),
      reader_([this] { read_queue(); }) {
  try {
    announcer_ = std::thread([this] { announce_queue(); });
  } catch (...) {
    stop();
    reader_.join();
    throw;
  }
}

ChunkFetcher::~ChunkFetcher() {
  stop();
  reader_.join();
  announcer_.join();
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

void ChunkFetcher::announce_queue() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stop_ || announced_ < announceable(); });
    if (stop_) return;
    const int32_t number = queue_[announced_++];
    lock.unlock();
    to_announce_.announce(chunk(number));
    lock.lock();
  }
}

void ChunkFetcher::read_queue() {
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
    lock.unlock();
    Bytes rows;
    std::exception_ptr error;
    try {
      rows = memory_->take(chunk_bytes_);
      to_read_.read(chunk(number), rows.data());
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
