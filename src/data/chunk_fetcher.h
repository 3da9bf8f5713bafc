// The chunks of the windows in use, and a thread that reads and verifies them before they are due:
// each once per window though every batch takes a few of its rows. What is expected is read in the
// order of the files. A second thread asks the system for the next megabytes, so that the disk
// does not wait for the processor: the asking itself takes time, and waits where the disk is busy.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "data/batch_plan.h"
#include "data/byte_pool.h"
#include "data/shard_file.h"

namespace megadict {

// Used by one thread beside its own two.
class ChunkFetcher {
 public:
  explicit ChunkFetcher(const ShardIndex& index);
  ~ChunkFetcher();  // after stop()

  // `window` will need these chunks (of ShardIndex::chunks()).
  void expect(std::vector<int32_t> chunks, WindowId window);
  // The verified rows of a chunk, waited for; out of turn where nobody expected it. They stay until
  // drop_before() of a window after `window`. What went wrong in reading it is thrown here.
  const std::byte* get(int32_t chunk, WindowId window);
  // Forgets the chunks that no window from this one on is known to need.
  void drop_before(WindowId window);
  // Ends get(), now and later, with an error. From any thread.
  void stop();

 private:
  enum class Phase { queued, reading, ready, failed };
  struct Entry {
    Phase phase = Phase::queued;
    WindowId window;  // the last one known to need it
    Bytes rows = {};
    std::exception_ptr error = {};
  };

  void read_queue();
  void announce_queue();
  size_t announceable() const { return std::min(queue_.size(), ahead_); }
  const Chunk& chunk(int32_t number) const { return index_.chunks()[static_cast<size_t>(number)]; }

  const ShardIndex& index_;
  ShardPool to_read_, to_announce_;  // one for each thread
  const size_t chunk_bytes_, ahead_;
  const std::shared_ptr<BytePool> memory_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::unordered_map<int32_t, Entry> entries_;
  std::deque<int32_t> queue_;  // chunks to read; some may have been dropped since
  size_t announced_ = 0;       // of the front of the queue
  bool stop_ = false;
  std::thread reader_, announcer_;
};

}  // namespace megadict
