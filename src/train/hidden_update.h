// What the hidden layers (model/hidden.h) learn in a step: every rank its own rows' share, summed
// over the mesh; then each rank moves its copy alike.
#pragma once

#include <span>

#include "comm/mesh.h"
#include "train/config.h"
#include "train/state.h"

namespace megadict {

// `gradients`, as Dictionary::hidden. Returns the sum of all squares, the same on every rank, not
// finite where one is. Collective over world.
double sum_hidden(const Mesh& mesh, std::span<at::Tensor> gradients);

// The step and the decay of hidden weights. The decoder rows before a deep decoder are such weights
// too (B5): theirs is apart, since each rank moves its own.
void update_hidden(std::span<const at::Tensor> gradients, const OptimConfig& optim,
                   const UpdateArgs& args, TrainState& state);
void decay_decoder_rows(const OptimConfig& optim, double lr, TrainState& state);

}  // namespace megadict
