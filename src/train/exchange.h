// The data axis (`mesh.exchange = gradients`): gradients are summed at the rows' owners, who
// update them and share the new rows. At data axis 1 nothing moves.
#pragma once

#include "model/gradients.h"
#include "train/state.h"

namespace megadict {

// My block of the gradients summed over the data axis: [block, ...]. Collective over data.
RowGradients sum_over_data(const Mesh& mesh, const RowGradients& mine, const TrainState& state);

// Everybody's updated rows to everybody. Collective over data.
void share_rows(const Mesh& mesh, TrainState& state);
void share_rows(const Mesh& mesh, const at::Tensor& rows_ld, const TrainState& state,
                const char* name);

// |G| of the whole dictionary's gradient from the sum of squares of this rank's own rows, b_dec
// counted once. Collective over world.
double gradient_norm(const Mesh& mesh, double own_square, const at::Tensor& b_dec_d);

}  // namespace megadict
