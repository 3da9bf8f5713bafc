#include "data/shared_stream.h"

#include <type_traits>
#include <utility>

#include "base/error.h"
#include "comm/agree.h"

namespace megadict {

SharedStream::SharedStream(Communicator& across, Open open)
    : across_(across), open_(std::move(open)) {
  across_.reset_counts();
}

void SharedStream::start(int64_t first_step) {
  needed_ = first_step;
  begun_ = true;
  across_.wait_for_all();
}

MicroBatch SharedStream::next() {
  MicroBatch batch;
  do {
    round(batch);
  } while (batch.step != needed_);
  if (batch.last_of_step) ++needed_;
  return batch;
}

void SharedStream::finish() {
  if (over_) return;
  if (!begun_) across_.wait_for_all();
  needed_ = kNoStep;
  for (MicroBatch passing; round(passing);) {
  }
  over_ = true;
  close();
}

double SharedStream::wait_seconds() const {
  return waited_s_ + (stream_ ? stream_->wait_seconds() : 0);
}

// The earliest micro-batch that somebody needs, on all; false where there is none.
bool SharedStream::round(MicroBatch& batch) {
  int64_t step = needed_;
  across_.all_reduce(view_of(&step, 1), ReduceOp::min, "step to read");
  if (step == kNoStep) return false;
  try {
    agree(across_, [&] {
      if (across_.rank() == 0) batch = read(step);
    });
  } catch (const Error& error) {
    close();
    if (error.code() == ExitCode::comm || step == needed_) throw;
    batch.step = step;
    return true;
  }
  hand_over(batch);
  return true;
}

MicroBatch SharedStream::read(int64_t step) {
  if (!stream_ || step > at_) {
    close();
    stream_ = open_(step);
  }
  MicroBatch batch = stream_->next();
  at_ = batch.last_of_step ? batch.step + 1 : batch.step;
  return batch;
}

void SharedStream::hand_over(MicroBatch& batch) {
  struct Head {
    MicroBatchFacts facts;
    int64_t bytes = 0;
  };
  static_assert(std::is_trivially_copyable_v<Head>);
  Head head{batch, static_cast<int64_t>(batch.data.size())};
  across_.broadcast({&head, sizeof head, DType::u8, Device::cpu}, 0, "micro-batch");
  if (across_.rank() != 0) {
    const auto bytes = static_cast<size_t>(head.bytes);
    static_cast<MicroBatchFacts&>(batch) = head.facts;
    batch.row_ids.resize(static_cast<size_t>(batch.part.owned.size()));
    if (bytes > piece_bytes_) memory_ = BytePool::of(piece_bytes_ = bytes);
    batch.data = memory_->take(bytes);
  }
  across_.broadcast(view_of(batch.row_ids.data(), batch.part.owned.size()), 0, "row ids");
  across_.broadcast({batch.data.data(), head.bytes, DType::u8, Device::cpu}, 0, "rows");
}

void SharedStream::close() {
  waited_s_ = wait_seconds();
  stream_.reset();
}

}  // namespace megadict
