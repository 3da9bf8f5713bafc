// TrainState is exactly what a checkpoint holds; anything not in it may not influence the next
// step.
#pragma once

#include <cstdint>

#include "comm/mesh.h"
#include "data/normalization.h"
#include "kernels/kernel_set.h"
#include "kernels/screen.h"
#include "model/dictionary.h"

namespace megadict {

// What the optimiser keeps, undefined where it keeps nothing: of the rows this rank owns; b_dec's
// are replicated.
struct Moments {
  at::Tensor m, v;
};

struct TrainState {
  Dictionary dictionary;  // my shard, the same on all ranks of a data axis
  Normalization normalization;
  double var_total = 0;       // of normalised rows
  int64_t step = 0;           // steps done
  int64_t tokens = 0;         // rows seen by the whole mesh
  int64_t resampled_at = -1;  // `step` when dead latents were last drawn anew; -1 = never

  // The latents of a shard are split over the data axis in blocks of `block` rows; this rank
  // updates `own` (local ids) and holds the optimiser's state of those rows alone.
  int64_t block = 0;
  Range own;
  Moments w_enc, w_dec, b_enc, b_dec;  // w_dec undefined when tied
  std::vector<Moments> extra;          // of Dictionary::extra_l
  std::vector<Moments> hidden;         // of Dictionary::hidden, replicated like it
  at::Tensor last_step_l;  // i64, of each own row's last update; only for a lazy optimiser
  at::Tensor ema_w_enc, ema_w_dec, ema_b_enc, ema_b_dec;  // own rows; undefined without optim.ema
  std::vector<at::Tensor> ema_extra, ema_hidden;
  at::Tensor tokens_since_fired_l;  // i64 [l], global tokens
  // Of batchtopk, from an evaluation after this very step; 0 = there was none.
  double judged_threshold = 0;
  Screen::Memory screen;     // of this rank's screen, where it has one
  bool row_skipped = false;  // a row's gradient was not finite: no checkpoint may follow

  int64_t padded() const { return block * data_size; }
  int data_size = 1;
};

// The same memory seen with its padding: [padded, ...].
at::Tensor with_padding(const at::Tensor& rows_ld, int64_t padded);

// Rows of a shard of `latents` that data index `index` of `data_size` owns: blocks of equal size,
// the last ones short or empty.
Range own_rows(int64_t latents, int data_size, int index);

// Fresh optimiser state and counters for state.dictionary.
void reset_optimiser(const Mesh& mesh, const Optimiser& optimiser, bool with_ema,
                     TrainState& state);

// The rows this rank updates, as the kernels take them; they share memory with `state`.
LatentRows own_latents(const TrainState& state);

}  // namespace megadict
