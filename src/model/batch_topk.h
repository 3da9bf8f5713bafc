// Exact BatchTopK over the mesh (Bussmann et al. 2024): of all pre-activations
// of the step's global batch, B rows times n latents, the B k best by (value descending, position
// of the row in the batch ascending, latent ascending), then ReLU. The same codes on any mesh.
//
// Each row of a shard lists its best list_width(k) latents. The (B k)-th largest value listed
// anywhere is found by radix selection, three all-reduced histograms of the values' bits; it is a
// lower bound of the true threshold. Rows whose whole list reaches it may hold more: they are
// encoded again for everything above it, and the selection is repeated. Entries that tie at the
// threshold are told apart by a selection on (row, latent).
#pragma once

#include "comm/communicator.h"
#include "kernels/kernel_set.h"
#include "kernels/screen.h"

namespace megadict {

inline constexpr int kRadixBits = 11;  // of a histogram of 2^11 int64 counts

struct BatchSelectArgs {
  int64_t k = 0;
  int64_t batch_rows = 0;          // B, real rows of the global batch
  int64_t first_row = 0;           // position in the batch of the first row here
  int64_t latents = 0;             // n, of the whole dictionary
  int64_t first_latent = 0;        // global id of the first latent here
  const Screen* screen = nullptr;  // that made the lists: its values, which round otherwise
};

struct BatchSelection {
  Codes codes;       // of the rows and latents here
  double least = 0;  // the smallest code kept anywhere, 0 where none is; equal on all ranks
};

// Latents a row of a shard lists at first. Most rows hold fewer codes than that; the others cost a
// second encode.
int64_t list_width(int64_t k);

// `input`: this rank's latents and the real rows of its data row, `lists`: the best list_width(k)
// of each (fewer where the shard is smaller). Collective over world.
BatchSelection select_batch_topk(Communicator& world, const EncodeArgs& input,
                                 const Candidates& lists, const BatchSelectArgs& args);

}  // namespace megadict
