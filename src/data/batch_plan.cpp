#include "data/batch_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "base/error.h"
#include "base/philox.h"

namespace megadict {

namespace {

// A row in its window: its chunk's position in the epoch's order, and its global id.
struct PlacedRow {
  int32_t position = 0;
  int64_t row = 0;
  auto operator<=>(const PlacedRow&) const = default;
};
using Window = std::vector<PlacedRow>;  // in shuffled order

struct Epoch {
  std::vector<int32_t> order;         // chunk index by position
  std::vector<int32_t> window_chunk;  // first position of each window, and one past the last
  std::vector<int64_t> window_row;  // first row of each window in the epoch's sequence, and the end

  int64_t windows() const { return static_cast<int64_t>(window_row.size()) - 1; }
  // The window that holds element `at` of the epoch's sequence.
  int64_t window_of(int64_t at) const {
    return std::upper_bound(window_row.begin(), window_row.end(), at) - window_row.begin() - 1;
  }
};

// The last few results of a pure function, shared by threads.
template <class Key, class Value>
class Recent {
 public:
  template <class Make>
  std::shared_ptr<const Value> get(const Key& key, Make make) {
    const std::lock_guard lock(mutex_);
    const auto found = values_.find(key);
    if (found != values_.end()) return found->second;
    auto value = std::make_shared<const Value>(make());
    if (values_.size() == kKept) {  // readers move forward: the smallest key is the oldest
      const bool behind = key < values_.begin()->first;
      values_.erase(behind ? std::prev(values_.end()) : values_.begin());
    }
    values_.emplace(key, value);
    return value;
  }

 private:
  static constexpr size_t kKept = 3;
  std::mutex mutex_;
  std::map<Key, std::shared_ptr<const Value>> values_;
};

void check_sizes(const DataConfig& config, int64_t rows) {
  const auto refuse = [](const char* name, int64_t value, const char* allowed) {
    fail_agreed(ExitCode::usage, fmt::format("{} is {}", name, value), allowed);
  };
  if (config.batch_size < 1) refuse("data.batch_size", config.batch_size, "1 or more");
  if (config.micro_batch_size < 0)
    refuse("data.micro_batch_size", config.micro_batch_size, "1 or more, 0 = data.batch_size");
  if (config.shuffle_buffer < 1) refuse("data.shuffle_buffer", config.shuffle_buffer, "1 or more");
  if (config.tokens < 0) refuse("data.tokens", config.tokens, "1 or more, 0 = one pass");
  if (config.last_batch != "drop" && config.last_batch != "keep")
    fail_agreed(ExitCode::usage, fmt::format("data.last_batch is '{}'", config.last_batch),
                "drop or keep");
  if (config.last_batch == "drop" && config.batch_size > rows)
    fail_agreed(ExitCode::usage,
                fmt::format("data.batch_size is {}, the data set has {} rows that take part",
                            config.batch_size, rows),
                "a smaller data.batch_size, or data.last_batch keep");
}

}  // namespace

struct BatchPlan::State {
  std::vector<Chunk> chunks;
  std::vector<int64_t> survivors;    // empty = all rows
  std::vector<int64_t> kept_before;  // rows that take part before chunk i; the last entry is all
  uint64_t seed = 0;
  int64_t batch = 0, micro = 0, window_rows = 0;
  int64_t epoch_rows = 0, epoch_steps = 0, steps = 0;
  Recent<int64_t, Epoch> epochs;
  Recent<WindowId, Window> windows;

  int64_t all_rows() const { return kept_before.back(); }
  int64_t kept(int32_t chunk) const {
    return kept_before[static_cast<size_t>(chunk) + 1] - kept_before[static_cast<size_t>(chunk)];
  }

  void count_kept();
  void count_steps(const DataConfig& config);
  Epoch make_epoch(int64_t number) const;
  Window make_window(const Epoch& epoch, WindowId id) const;

  std::shared_ptr<const Epoch> epoch(int64_t number) {
    return epochs.get(number, [&] { return make_epoch(number); });
  }
  std::shared_ptr<const Window> window(WindowId id) {
    const auto of = epoch(id.epoch);
    return windows.get(id, [&] { return make_window(*of, id); });
  }
  // Elements [range) of the epoch's shuffled sequence.
  std::vector<PlacedRow> sequence(int64_t number, Range range);
  // The part of the epoch's sequence that a micro-batch takes.
  Range part(int64_t step, int64_t index) const;
  int64_t batch_rows(int64_t step) const {
    return std::min(batch, epoch_rows - (step % epoch_steps) * batch);
  }
};

void BatchPlan::State::count_kept() {
  kept_before.assign(chunks.size() + 1, 0);
  auto next = survivors.begin();
  for (size_t i = 0; i < chunks.size(); ++i) {
    const auto end = std::lower_bound(next, survivors.end(), chunks[i].rows.end);
    kept_before[i + 1] = kept_before[i] + (survivors.empty() ? chunks[i].rows.size() : end - next);
    next = end;
  }
}

void BatchPlan::State::count_steps(const DataConfig& config) {
  batch = config.batch_size;
  micro = config.micro_batch_size > 0 ? std::min(config.micro_batch_size, batch) : batch;
  window_rows = config.shuffle_buffer;
  const bool keep = config.last_batch == "keep";
  epoch_steps = keep ? ceil_div(all_rows(), batch) : all_rows() / batch;
  epoch_rows = keep ? all_rows() : epoch_steps * batch;
  steps = epoch_steps;
  if (config.tokens > 0)
    steps = std::max<int64_t>(
        1, config.tokens / epoch_rows * epoch_steps + config.tokens % epoch_rows / batch);
}

Epoch BatchPlan::State::make_epoch(int64_t number) const {
  const Rng rng{seed, Purpose::chunk_order, static_cast<uint64_t>(number)};
  std::vector<std::pair<uint64_t, int32_t>> keyed(chunks.size());
  for (size_t i = 0; i < chunks.size(); ++i) keyed[i] = {rng.bits64(i), static_cast<int32_t>(i)};
  std::sort(keyed.begin(), keyed.end());

  Epoch epoch;
  int64_t rows = 0;
  for (const auto& [key, chunk] : keyed) {
    if (epoch.window_row.empty() || rows - epoch.window_row.back() >= window_rows) {
      epoch.window_chunk.push_back(static_cast<int32_t>(epoch.order.size()));
      epoch.window_row.push_back(rows);
    }
    epoch.order.push_back(chunk);
    rows += kept(chunk);
  }
  if (rows == epoch.window_row.back()) {  // a last window of dropped rows alone
    epoch.window_chunk.pop_back();
    epoch.window_row.pop_back();
  }
  epoch.window_chunk.push_back(static_cast<int32_t>(epoch.order.size()));
  epoch.window_row.push_back(rows);
  return epoch;
}

Window BatchPlan::State::make_window(const Epoch& epoch, WindowId id) const {
  const Rng rng{seed, Purpose::row_order, static_cast<uint64_t>(id.epoch)};
  const auto w = static_cast<size_t>(id.window);
  std::vector<std::pair<uint64_t, PlacedRow>> keyed;
  keyed.reserve(static_cast<size_t>(epoch.window_row[w + 1] - epoch.window_row[w]));
  for (int32_t position = epoch.window_chunk[w]; position < epoch.window_chunk[w + 1]; ++position) {
    const auto chunk = static_cast<size_t>(epoch.order[static_cast<size_t>(position)]);
    const Range rows =
        survivors.empty() ? chunks[chunk].rows : Range{kept_before[chunk], kept_before[chunk + 1]};
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t row = survivors.empty() ? i : survivors[static_cast<size_t>(i)];
      keyed.push_back({rng.bits64(static_cast<uint64_t>(row)), {position, row}});
    }
  }
  std::sort(keyed.begin(), keyed.end());
  Window window;
  window.reserve(keyed.size());
  for (const auto& [key, placed] : keyed) window.push_back(placed);
  return window;
}

std::vector<PlacedRow> BatchPlan::State::sequence(int64_t number, Range range) {
  std::vector<PlacedRow> rows;
  rows.reserve(static_cast<size_t>(range.size()));
  const auto of = epoch(number);
  for (int64_t w = of->window_of(range.begin); w < of->windows(); ++w) {
    const auto at = static_cast<size_t>(w);
    const Range wanted = intersect({of->window_row[at], of->window_row[at + 1]}, range);
    if (wanted.empty()) break;
    const auto shuffled = window({number, w});
    const auto first = shuffled->begin() + (wanted.begin - of->window_row[at]);
    rows.insert(rows.end(), first, first + wanted.size());
  }
  return rows;
}

Range BatchPlan::State::part(int64_t step, int64_t index) const {
  const int64_t first = (step % epoch_steps) * batch;
  const int64_t begin = first + index * micro;
  const Range range{begin, std::min(begin + micro, first + batch_rows(step))};
  if (step < 0 || step >= steps || index < 0 || range.empty())
    fail(ExitCode::error,
         fmt::format("micro-batch {} of step {} of a plan of {} steps", index, step, steps));
  return range;
}

BatchPlan::BatchPlan(const ShardIndex& index, const DataConfig& config, uint64_t seed,
                     std::vector<int64_t> survivors)
    : state_(std::make_shared<State>()) {
  state_->chunks = index.chunks();
  state_->survivors = std::move(survivors);
  state_->seed = seed;
  state_->count_kept();
  check_sizes(config, state_->all_rows());
  state_->count_steps(config);
}

int64_t BatchPlan::steps() const {
  return state_->steps;
}

int64_t BatchPlan::rows_per_epoch() const {
  return state_->epoch_rows;
}

int64_t BatchPlan::tokens_at(int64_t step) const {
  const int64_t inside = (step % state_->epoch_steps) * state_->batch;
  return step / state_->epoch_steps * state_->epoch_rows + std::min(inside, state_->epoch_rows);
}

int64_t BatchPlan::batch_rows(int64_t step) const {
  return state_->batch_rows(step);
}

int64_t BatchPlan::micro_batches(int64_t step) const {
  return ceil_div(batch_rows(step), state_->micro);
}

std::vector<int64_t> BatchPlan::rows(int64_t step, int64_t micro) const {
  std::vector<PlacedRow> placed =
      state_->sequence(step / state_->epoch_steps, state_->part(step, micro));
  std::sort(placed.begin(), placed.end());
  std::vector<int64_t> rows;
  rows.reserve(placed.size());
  for (const PlacedRow& row : placed) rows.push_back(row.row);
  return rows;
}

std::vector<int64_t> BatchPlan::sample(int64_t count) const {
  std::vector<int64_t> rows;
  for (const PlacedRow& row : state_->sequence(0, {0, std::min(count, state_->all_rows())}))
    rows.push_back(row.row);
  return rows;
}

std::pair<WindowId, WindowId> BatchPlan::windows(int64_t step, int64_t micro) const {
  const int64_t number = step / state_->epoch_steps;
  const Range range = state_->part(step, micro);
  const auto epoch = state_->epoch(number);
  return {{number, epoch->window_of(range.begin)}, {number, epoch->window_of(range.end - 1)}};
}

WindowId BatchPlan::next(WindowId window) const {
  if (window.window + 1 < state_->epoch(window.epoch)->windows())
    return {window.epoch, window.window + 1};
  return {window.epoch + 1, 0};
}

std::vector<int32_t> BatchPlan::window_chunks(WindowId window) const {
  const auto epoch = state_->epoch(window.epoch);
  const auto w = static_cast<size_t>(window.window);
  return {epoch->order.begin() + epoch->window_chunk[w],
          epoch->order.begin() + epoch->window_chunk[w + 1]};
}

RowPart row_part(int64_t rows, int data_size, int feature_size, int data_index, int feature_index) {
  RowPart part;
  part.row_range = shard_of(rows, data_size, data_index);
  part.slot = ceil_div(ceil_div(rows, data_size), feature_size);
  part.padded = feature_size * part.slot;
  part.owned = intersect({feature_index * part.slot, (feature_index + 1) * part.slot},
                         {0, part.row_range.size()});
  if (part.owned.empty()) part.owned = {part.row_range.size(), part.row_range.size()};
  return part;
}

}  // namespace megadict
