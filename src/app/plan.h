// Memory, bytes on the wire and disk of a run on a mesh, by formula: pure functions, no data and
// no ranks needed. Formulas: payloads in fp32 (rows of data in their own
// type), sizes that do not divide as shard_of() splits them; the data axis by gradients or by
// tokens.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "app/config.h"
#include "kernels/screen_product.h"

namespace megadict {

struct PlanInput {
  int64_t width = 0;                // d
  int64_t latents = 0;              // n
  int64_t k = 0;                    // active per row, on average
  int64_t batch = 0;                // rows of the global batch
  int64_t micro = 0;                // rows of the global micro-batch
  int64_t k_aux = 0;                // 0 = no AuxK
  int64_t sample_bytes = 4;         // of one element of x in the shards
  int64_t queue = 4;                // micro-batches read ahead
  int64_t shuffle_buffer = 262144;  // rows of a shuffling window
  int64_t rows = 0;                 // of the data set; 0 = not known, many
  int64_t keep = 2;                 // checkpoints kept, at most
  // Codes are the best of each row, the best of the batch, or all that are positive.
  enum class Select { row, batch, positive } select = Select::row;
  int64_t extra = 0;       // numbers that the activation learns of each latent, besides b_enc
  bool preact = false;     // dead.preact_coefficient, in a step after the first dead.window_tokens
  bool l0_target = false;  // the whole batch's L0 is compared with one
  int64_t prefixes = 1;    // of a matryoshka dictionary: each has a reconstruction
  bool gates = false;      // gated: they have one of their own
  int64_t levels() const { return prefixes + (gates ? 1 : 0); }
  bool tied = false;
  // Hidden layers (model/hidden.h): columns of W_enc where they are not `width`; all their numbers.
  int64_t seen = 0, hidden = 0;
  bool front = false;
  int64_t encoder_width() const { return seen > 0 ? seen : width; }
  bool average = false;  // a second, averaged copy of the weights
  int64_t moments = 2;   // copies of the rows that the optimiser keeps
  bool lazy = false;     // the optimiser keeps each row's last step
  // kernels.encode: a copy of the encoder rows in few bits where it was asked for, or shards are
  // large enough for `auto`, which is then taken to pick int8.
  enum class Screen { never, large_shards, always } screen = Screen::never;
  ScreenKind screen_kind = ScreenKind::int8;
  bool tensors = false;  // kernels.set: plain tensor operations, whose temporaries are bounded
  bool clips = false;    // optim.clip_norm: the gradient is kept whole before any update
  bool tokens = true;    // mesh.exchange: tokens cross the data axis, not gradients
  bool exchange_by_rule = false;  // mesh.exchange was auto: another mesh may do otherwise
  bool deterministic = false;
  bool overlap = false;       // mesh.overlap
  int64_t resample_rows = 0;  // of a resampling of dead latents; 0 = there is none
  int64_t listed() const;     // latents that a row of a shard lists before the selection
};

// Of a configuration whose "0 = ..." are resolved (check_against_data).
PlanInput plan_input(const Config& config, int64_t width, int64_t sample_bytes, int64_t rows);

// Bytes that one rank receives from others in one optimiser step, all its micro-batches together;
// logged steps add two small all-reduces. `name` is the collective's, as Communicator counts it.
struct Transfer {
  const char* step;  // row of "the path of a batch" (src/README.md); "aux" = AuxK
  const char* name;
  const char* axis;  // "feature", "data", "world"
  int64_t bytes = 0;
  bool estimate = false;  // depends on the data: how many codes fall on how many latents
};

// In the order of the step; the largest rank of the mesh where sizes do not divide. AuxK's are
// those of a step with at least k_aux dead latents. Estimates take all latents for alike.
std::vector<Transfer> transfers(const PlanInput& in, int data_size, int feature_size);
// Those of one resampling of dead latents, besides what it reads from disk.
std::vector<Transfer> resample_transfers(const PlanInput& in, int data_size, int feature_size);
int64_t total_bytes(const std::vector<Transfer>& transfers, const std::string& axis = "");
// "gradients" or "tokens", whichever moves fewer bytes over the data axis.
const char* cheaper_exchange(const PlanInput& in, int data_size, int feature_size);
// With what a run on that mesh would exchange.
PlanInput on_mesh(PlanInput in, const MeshConfig& mesh);
// Of `latents` latents those that one of `codes` codes falls on, if all are alike.
double touched_latents(double latents, double codes);

// Bytes of the rank that holds most.
struct MemoryPlan {
  int64_t weights = 0;  // W_enc, W_dec, biases: fp32, this rank's latents
  int64_t moments = 0;  // what the optimiser keeps of the rows this rank updates (1/D of its own)
  // [latents, 2d+1] fp32; with D > 1 also the sums of the rows it updates; sums of b_dec alone
  // where the rows are updated in one pass (train/update.h)
  int64_t gradients = 0;
  int64_t average = 0;     // the averaged copy of the rows it updates
  int64_t counters = 0;    // per latent: rows since it last fired
  int64_t screen = 0;      // encoder rows in few bits, without dims kept apart (kernels/screen.h)
  int64_t buffers = 0;     // one micro-batch in flight and those read ahead
  int64_t window = 0;      // rows of the shuffling window in use and of the next one
  int64_t resampling = 0;  // losses and weights of the rows that dead latents start anew from
  int64_t program = 0;     // its libraries and what they allocate, measured
  int64_t peak() const {
    return weights + moments + gradients + average + counters + screen + buffers + window +
           resampling + program;
  }
  // AuxK besides: copies (and, without the one pass, gradients) of a shard's dead latents.
  int64_t bytes_per_dead_latent = 0;
};

MemoryPlan memory(const PlanInput& in, int data_size, int feature_size);

// The smallest feature axis, one rank a node, whose ranks need at most `bytes` each; 0 = none up to
// 4096.
int feature_axis_that_fits(const PlanInput& in, int64_t bytes);

struct DiskPlan {
  int64_t checkpoint = 0;  // one, all parts: weights, moments, counters, average
  int64_t peak = 0;        // those kept, one being written, and final/
};

DiskPlan disk(const PlanInput& in);

// Parameters of the dictionary (numbers, not bytes).
int64_t parameters(const PlanInput& in);

// All D x F = ranks with at most one feature rank per latent, D ascending.
std::vector<MeshConfig> meshes_of(int ranks, int64_t latents);

// "12.3 GiB", "512 B".
std::string bytes_text(int64_t bytes);

}  // namespace megadict
