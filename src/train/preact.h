// The pre-activation loss of jumprelu, for latents that no code trains any more:
//   c / B * sum over rows and dead latents of relu(theta - v) |w_dec row|
// with the row's length as a constant. SAELens has the same term (pre_act_loss_coefficient).
//
// A dead latent is below its threshold nearly everywhere, so its gradient is taken from the sum of
// all rows of the batch less those on which it fired: no pass over rows times dead latents.
#pragma once

#include <span>
#include <vector>

#include "kernels/kernel_set.h"
#include "model/exact_sums.h"
#include "train/latent_parameters.h"
#include "train/state.h"
#include "train/token_exchange.h"

namespace megadict {

struct Preact {
  double weight = 0;  // c over var_total; 0 = no part in this step, on all ranks alike
  Sums sums = Sums::fast;
  at::Tensor dead_l;             // bool [l]
  at::Tensor norm_l;             // fp64 [l]: |w_dec row| of dead latents, else 0
  at::Tensor sum_d;              // fp64: of my own rows x - b_dec
  std::vector<at::Tensor> rows;  // the same, for exact sums
  at::Tensor mean_d;             // fp32, of the batch; after finish_preact()
  double fired = 0;              // sum |w| (z - theta) of codes of dead latents
  bool active() const { return weight > 0; }
};

Preact make_preact(const TrainState& state, double coefficient, int64_t window_tokens, Sums sums);

// Of a micro-batch: my own rows, and codes of my data row, whose number of each dead latent goes to
// `terms`' third column.
void add_to_preact(const Dictionary& dictionary, const at::Tensor& own_rd, const Codes& codes,
                   Preact& preact, LatentTerms& terms);

// Returns my part of the loss times B. Collective over world.
double finish_preact(const Mesh& mesh, const Dictionary& dictionary, int64_t batch_rows,
                     Preact& preact);

// Its gradients of the latents `which` (local ids), in one pass with those of `parts`, whose codes
// are of these latents. What it points to lives as long as it; it does not move.
struct PreactSources {
  PreactSources(const Preact& preact, Range which, int64_t batch_rows,
                std::span<const BatchPart> parts);
  PreactSources(const PreactSources&) = delete;
  PreactSources& operator=(const PreactSources&) = delete;

  LatentCodes all;                 // an entry of each dead latent: the mean row, for all rows
  std::vector<LatentCodes> fired;  // of each part the entries of dead latents
  at::Tensor mean_1d, no_g;
  std::vector<GradientSource> sources;
};

// The same into gradient tensors: of all rows, once on the mesh; of codes of my data row.
void add_all_rows(const Dictionary& dictionary, const Preact& preact, int64_t batch_rows,
                  RowGradients& gradients);
void add_fired(const Dictionary& dictionary, const Preact& preact, const BatchPart& part,
               RowGradients& gradients);

}  // namespace megadict
