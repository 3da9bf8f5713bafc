// One stream for several groups of ranks that train on the same rows: the first group reads, equal
// ranks of the others receive. Before each micro-batch all say which step they need next; rows of
// the earliest are read, and whoever is further along (a run that was resumed) lets them pass. So
// any group, the first one too, may stop needing rows at any time, if it goes on taking part.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>

#include "comm/communicator.h"
#include "data/batch_stream.h"

namespace megadict {

class SharedStream {
 public:
  using Open = std::function<std::unique_ptr<BatchStream>(int64_t first_step)>;

  // `across`: equal ranks of all groups, the reading one's first; its counters begin anew. `open`
  // is that one's, and not called on the others.
  SharedStream(Communicator& across, Open open);

  // Rows of this step come next. Waits, however long, until every group starts or finishes.
  void start(int64_t first_step);
  // As that of BatchStream. An error of the reader is thrown on every rank that needs these rows.
  MicroBatch next();
  // Takes part until nobody needs rows any more; also without start(), and again.
  void finish();

  double wait_seconds() const;  // for the reader alone: 0 where rows are received
  Communicator& across() const { return across_; }

 private:
  static constexpr int64_t kNoStep = std::numeric_limits<int64_t>::max();

  bool round(MicroBatch& batch);
  MicroBatch read(int64_t step);
  void hand_over(MicroBatch& batch);
  void close();

  Communicator& across_;
  const Open open_;
  std::unique_ptr<BatchStream> stream_;  // the reader's
  int64_t at_ = 0;                       // step of its next micro-batch
  double waited_s_ = 0;                  // for streams before it
  std::shared_ptr<BytePool> memory_;     // of what is received
  size_t piece_bytes_ = 0;
  int64_t needed_ = kNoStep;
  bool begun_ = false, over_ = false;
};

}  // namespace megadict
