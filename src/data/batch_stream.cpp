#include "data/batch_stream.h"

#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "base/clock.h"
#include "base/error.h"
#include "data/chunk_fetcher.h"
#include "data/row_reader.h"

namespace megadict {

namespace {

// Makes one rank's micro-batches.
class Reader {
 public:
  Reader(const ShardIndex& index, const BatchPlan& plan, int data_size, int feature_size,
         int data_index, int feature_index)
      : index_(index),
        plan_(plan),
        fetcher_(index),
        row_bytes_(index.width() * static_cast<int64_t>(size_of(index.facts().dtype))),
        data_size_(data_size),
        feature_size_(feature_size),
        data_index_(data_index),
        feature_index_(feature_index) {
    const int64_t last = plan.steps() - 1;
    last_window_ = plan.windows(last, plan.micro_batches(last) - 1).second;
    const int64_t slot = part_of(plan.rows(0, 0).size()).slot;
    memory_ = BytePool::of(static_cast<size_t>(slot * row_bytes_));
  }

  MicroBatch make(int64_t step, int64_t micro) {
    const std::vector<int64_t> rows = plan_.rows(step, micro);
    const auto [first, last] = plan_.windows(step, micro);
    fetcher_.drop_before(first);
    look_ahead(first, last, static_cast<int64_t>(rows.size()));

    MicroBatch batch;
    batch.step = step;
    batch.micro = micro;
    batch.last_of_step = micro + 1 == plan_.micro_batches(step);
    batch.batch_rows = plan_.batch_rows(step);
    batch.rows = static_cast<int64_t>(rows.size());
    batch.part = part_of(rows.size());
    batch.dtype = index_.facts().dtype;
    const auto owned = rows.begin() + batch.part.row_range.begin;
    batch.row_ids.assign(owned + batch.part.owned.begin, owned + batch.part.owned.end);
    fill(batch, last);
    return batch;
  }

  // From any thread: make() ends with an error.
  void stop() { fetcher_.stop(); }

 private:
  RowPart part_of(size_t rows) const {
    return row_part(static_cast<int64_t>(rows), data_size_, feature_size_, data_index_,
                    feature_index_);
  }

  void fill(MicroBatch& batch, WindowId window) {
    const auto row_bytes = static_cast<size_t>(row_bytes_);
    batch.data = memory_->take(static_cast<size_t>(batch.part.slot) * row_bytes);
    std::byte* to = batch.data.data();
    const std::byte* rows = nullptr;
    Range held;
    for (int64_t row : batch.row_ids) {
      if (!held.contains(row)) {
        const int32_t chunk = chunk_of(index_, row);
        held = index_.chunks()[static_cast<size_t>(chunk)].rows;
        rows = fetcher_.get(chunk, window);
      }
      std::memcpy(to, rows + (row - held.begin) * row_bytes_, row_bytes);
      check_finite(index_, row, 1, to);
      to += row_bytes;
    }
    const size_t padding = static_cast<size_t>(batch.part.slot) - batch.row_ids.size();
    std::memset(to, 0, padding * row_bytes);
  }

  // Lets the fetcher read what this rank will mostly need of the windows of a micro-batch and of
  // the one after them. Rows of a batch are sorted by chunk position, so a rank's share of a batch
  // is the same share of the positions.
  void look_ahead(WindowId first, WindowId last, int64_t rows) {
    const WindowId end = last < last_window_ ? plan_.next(last) : last;
    for (WindowId window = std::max(first, next_window_); window <= end;
         window = plan_.next(window)) {
      expect(window, rows);
      next_window_ = plan_.next(window);
    }
  }

  void expect(WindowId window, int64_t rows) {
    const RowPart part = part_of(static_cast<size_t>(rows));
    const auto share = [&](int64_t at) {
      return static_cast<double>(part.row_range.begin + at) / static_cast<double>(rows);
    };
    const std::vector<int32_t> chunks = plan_.window_chunks(window);
    const auto count = static_cast<double>(chunks.size());
    std::vector<int32_t> mine;
    for (size_t i = 0; i < chunks.size(); ++i)
      if (static_cast<double>(i + 1) > share(part.owned.begin) * count &&
          static_cast<double>(i) < share(part.owned.end) * count)
        mine.push_back(chunks[i]);
    fetcher_.expect(std::move(mine), window);
  }

  const ShardIndex& index_;
  const BatchPlan& plan_;
  ChunkFetcher fetcher_;
  std::shared_ptr<BytePool> memory_;
  int64_t row_bytes_;
  int data_size_, feature_size_, data_index_, feature_index_;
  WindowId last_window_, next_window_{-1, 0};  // the first one not yet expected
};

}  // namespace

struct BatchStream::State {
  State(const ShardIndex& index, const BatchPlan& plan, int data_size, int feature_size,
        int data_index, int feature_index, int queue)
      : reader(index, plan, data_size, feature_size, data_index, feature_index),
        limit(static_cast<size_t>(std::max(1, queue))) {}

  Reader reader;  // the thread's
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
    changed.wait(lock, [&] { return ready.size() < limit || stop; });
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
  state_->reader.stop();
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
