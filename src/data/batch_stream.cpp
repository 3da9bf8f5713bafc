#include "data/batch_stream.h"

#include <fmt/format.h>

#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "base/clock.h"
#include "base/error.h"
#include "data/row_reader.h"
#include "data/shard_file.h"

namespace megadict {

namespace {

// The chunks of the windows in use, so that each is read from disk once per window though every
// batch takes a few of its rows; about 1/P of a window, and of the next one while reading ahead.
class ChunkCache {
 public:
  explicit ChunkCache(const ShardIndex& index) : index_(index), pool_(index) {}

  const std::byte* get(int32_t chunk, WindowId window) {
    auto found = entries_.find(chunk);
    if (found == entries_.end()) {
      std::vector<std::byte> rows = spare_.empty() ? std::vector<std::byte>() : take_spare();
      pool_.read(index_.chunks()[static_cast<size_t>(chunk)], rows);
      found = entries_.emplace(chunk, Entry{std::move(rows), window}).first;
    }
    found->second.window = std::max(found->second.window, window);
    return found->second.rows.data();
  }

  void drop_before(WindowId window) {
    std::erase_if(entries_, [&](auto& item) {
      const bool past = item.second.window < window;
      if (past) spare_.push_back(std::move(item.second.rows));
      return past;
    });
  }

 private:
  struct Entry {
    std::vector<std::byte> rows;
    WindowId window;  // the last one known to need it
  };

  std::vector<std::byte> take_spare() {
    std::vector<std::byte> taken = std::move(spare_.back());
    spare_.pop_back();
    return taken;
  }

  const ShardIndex& index_;
  ShardPool pool_;
  std::unordered_map<int32_t, Entry> entries_;
  std::vector<std::vector<std::byte>> spare_;  // fresh memory costs more than reading into it
};

// Makes one rank's micro-batches, and reads the next window's chunks when there is time.
class Reader {
 public:
  Reader(const ShardIndex& index, const BatchPlan& plan, int data_size, int feature_size,
         int data_index, int feature_index)
      : index_(index),
        plan_(plan),
        cache_(index),
        data_size_(data_size),
        feature_size_(feature_size),
        data_index_(data_index),
        feature_index_(feature_index) {
    const int64_t last = plan.steps() - 1;
    last_window_ = plan.windows(last, plan.micro_batches(last) - 1).second;
  }

  MicroBatch make(int64_t step, int64_t micro) {
    const std::vector<int64_t> rows = plan_.rows(step, micro);
    const auto [first, last] = plan_.windows(step, micro);
    cache_.drop_before(first);
    plan_ahead(last, static_cast<int64_t>(rows.size()));

    MicroBatch batch;
    batch.step = step;
    batch.micro = micro;
    batch.last_of_step = micro + 1 == plan_.micro_batches(step);
    batch.batch_rows = plan_.batch_rows(step);
    batch.rows = static_cast<int64_t>(rows.size());
    batch.part = row_part(batch.rows, data_size_, feature_size_, data_index_, feature_index_);
    batch.dtype = index_.facts().dtype;
    const auto owned = rows.begin() + batch.part.row_range.begin;
    batch.row_ids.assign(owned + batch.part.owned.begin, owned + batch.part.owned.end);
    fill(batch, last);
    return batch;
  }

  // Reads one chunk of the next window; false when there is nothing to read ahead.
  bool read_ahead() {
    if (ahead_.empty()) return false;
    const int32_t chunk = ahead_.back();
    ahead_.pop_back();
    try {
      cache_.get(chunk, ahead_window_);
    } catch (const Error&) {
      // The same error comes again, at its own step, when the chunk's rows are due.
      ahead_.clear();
    }
    return true;
  }

 private:
  void fill(MicroBatch& batch, WindowId window) {
    const int64_t row_bytes = index_.width() * static_cast<int64_t>(size_of(batch.dtype));
    batch.data.resize(static_cast<size_t>(batch.part.slot * row_bytes));
    std::byte* to = batch.data.data();
    int32_t chunk = -1;
    const std::byte* rows = nullptr;
    Range held;
    for (int64_t row : batch.row_ids) {
      if (!held.contains(row)) {
        chunk = chunk_of(index_, row);
        held = index_.chunks()[static_cast<size_t>(chunk)].rows;
        rows = cache_.get(chunk, window);
      }
      const std::byte* from = rows + (row - held.begin) * row_bytes;
      check_finite(index_, row, 1, from);
      std::memcpy(to, from, static_cast<size_t>(row_bytes));
      to += row_bytes;
    }
  }

  // Lists the chunks this rank will mostly need of the window after `current`. Rows of a batch are
  // sorted by chunk position, so a rank's share of a batch is the same share of the positions.
  void plan_ahead(WindowId current, int64_t rows) {
    if (current < ahead_window_ || current >= last_window_) return;
    ahead_window_ = plan_.next(current);
    const RowPart part = row_part(rows, data_size_, feature_size_, data_index_, feature_index_);
    const auto share = [&](int64_t at) {
      return static_cast<double>(part.row_range.begin + at) / static_cast<double>(rows);
    };
    const std::vector<int32_t> chunks = plan_.window_chunks(ahead_window_);
    const auto count = static_cast<double>(chunks.size());
    ahead_.clear();
    for (size_t i = chunks.size(); i-- > 0;)  // taken from the back: the first positions first
      if (static_cast<double>(i + 1) > share(part.owned.begin) * count &&
          static_cast<double>(i) < share(part.owned.end) * count)
        ahead_.push_back(chunks[i]);
  }

  const ShardIndex& index_;
  const BatchPlan& plan_;
  ChunkCache cache_;
  int data_size_, feature_size_, data_index_, feature_index_;
  WindowId last_window_, ahead_window_{-1, 0};
  std::vector<int32_t> ahead_;
};

}  // namespace

struct BatchStream::State {
  State(const ShardIndex& index, const BatchPlan& plan, int data_size, int feature_size,
        int data_index, int feature_index, int queue)
      : reader(index, plan, data_size, feature_size, data_index, feature_index),
        limit(static_cast<size_t>(std::max(1, queue))) {}

  Reader reader;  // used by the thread alone
  const size_t limit;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<MicroBatch> ready;
  std::exception_ptr error;
  bool finished = false, stop = false;
  double waited_s = 0;
  std::thread thread;

  // False when the stream is being destroyed.
  bool push(MicroBatch batch) {
    std::unique_lock lock(mutex);
    while (ready.size() >= limit && !stop) {
      lock.unlock();
      const bool worked = reader.read_ahead();
      lock.lock();
      if (!worked) changed.wait(lock, [&] { return ready.size() < limit || stop; });
    }
    if (stop) return false;
    ready.push_back(std::move(batch));
    changed.notify_all();
    return true;
  }

  void run(const BatchPlan& plan, int64_t first_step) {
    std::exception_ptr thrown;
    try {
      for (int64_t step = first_step; step < plan.steps(); ++step)
        for (int64_t micro = 0; micro < plan.micro_batches(step); ++micro)
          if (!push(reader.make(step, micro))) return;
    } catch (...) {
      thrown = std::current_exception();
    }
    const std::lock_guard lock(mutex);
    error = thrown;
    finished = true;
    changed.notify_all();
  }
};

BatchStream::BatchStream(const ShardIndex& index, const BatchPlan& plan, int data_size,
                         int feature_size, int data_index, int feature_index, int64_t first_step,
                         int queue)
    : state_(std::make_unique<State>(index, plan, data_size, feature_size, data_index,
                                     feature_index, queue)) {
  state_->thread = std::thread([this, &plan, first_step] { state_->run(plan, first_step); });
}

BatchStream::~BatchStream() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->changed.notify_all();
  state_->thread.join();
}

MicroBatch BatchStream::next() {
  const Timer timer(state_->waited_s);
  std::unique_lock lock(state_->mutex);
  state_->changed.wait(lock, [&] { return !state_->ready.empty() || state_->finished; });
  if (state_->ready.empty()) {
    if (state_->error) std::rethrow_exception(state_->error);
    fail(ExitCode::error, "the batch stream was read past its last step");
  }
  MicroBatch batch = std::move(state_->ready.front());
  state_->ready.pop_front();
  state_->changed.notify_all();
  return batch;
}

double BatchStream::wait_seconds() const {
  return state_->waited_s;
}

}  // namespace megadict
