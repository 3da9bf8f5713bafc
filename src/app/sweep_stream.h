// sweep.share_stream: what points must have in common to train on one stream of rows, and who reads
// it.
#pragma once

#include <memory>
#include <vector>

#include "app/sweep_grid.h"
#include "comm/launch.h"
#include "data/shared_stream.h"

namespace megadict {

// Exit 2 (agreed) naming the first setting that decides which rows a rank gets, and that two points
// do not share.
void refuse_other_streams(const std::vector<SweepPoint>& points);

// The groups of a job that share rows; group 0 reads them for all. Data that cannot be opened fail
// the points that ask for rows.
class StreamGroups {
 public:
  // `settings`: of any point. Collective over `whole`.
  StreamGroups(Launch& whole, Launch& group, int index, const Settings& settings);

  // For the next wave of points, one a group at most. Collective over `whole`, at any time.
  std::unique_ptr<SharedStream> next_wave();

 private:
  std::unique_ptr<Communicator> across_;
  SharedStream::Open open_;
};

}  // namespace megadict
