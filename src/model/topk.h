// Exact TopK over the feature axis: each shard sends the first c of its best
// values to the rows' owners, an owner finds the k-th of all and answers with a threshold (tau,
// cut); rows for which c values were too few to tell are repaired in a second round. The result is
// the k best of the whole row by (value descending, latent ascending), ties included, on any mesh.
#pragma once

#include <vector>

#include "comm/communicator.h"
#include "kernels/codes.h"

namespace megadict {

struct SelectArgs {
  int64_t k = 0;
  int64_t slot = 0;                    // rows per owner; the candidates hold F * slot rows
  int64_t real_rows = 0;               // rows past these are padding: nothing is selected there
  int64_t width = 0;                   // c, values a shard sends at first; 0 = candidate_width()
  std::vector<int64_t> shard_latents;  // of every shard, [F]
};

// min(k, ceil(k/F + 6 sqrt(k/F) + 4)): rows spread evenly over shards need no second round.
int64_t candidate_width(int64_t k, int shards);

// Collective over feature. `mine`: this shard's candidates, min(k, latents) wide.
Codes select_topk(Communicator& feature, const Candidates& mine, const SelectArgs& args);

}  // namespace megadict
