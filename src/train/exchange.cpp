#include "train/exchange.h"

#include <ATen/ATen.h>

#include <cmath>

#include "model/tensor_views.h"

namespace megadict {

namespace {

at::Tensor block_sum(const Mesh& mesh, const at::Tensor& mine, int64_t block, const char* name) {
  std::vector<int64_t> shape = mine.sizes().vec();
  shape[0] = block;
  at::Tensor out = at::empty(shape, mine.options());
  mesh.data->reduce_scatter(view_of(mine), view_of(out), name);
  return out;
}

}  // namespace

RowGradients sum_over_data(const Mesh& mesh, const RowGradients& mine, const TrainState& state) {
  if (mesh.data_size() == 1) return mine;
  RowGradients own;
  own.w_enc_ld = block_sum(mesh, mine.w_enc_ld, state.block, "gradients W_enc");
  own.w_dec_ld = state.dictionary.tied()
                     ? own.w_enc_ld
                     : block_sum(mesh, mine.w_dec_ld, state.block, "gradients W_dec");
  own.b_enc_l = block_sum(mesh, mine.b_enc_l, state.block, "gradients b_enc");
  return own;
}

void share_rows(const Mesh& mesh, const at::Tensor& rows_ld, const TrainState& state,
                const char* name) {
  if (mesh.data_size() == 1) return;
  at::Tensor all = with_padding(rows_ld, state.padded());
  const at::Tensor mine = all.narrow(0, mesh.data_index * state.block, state.block);
  mesh.data->all_gather(view_of(mine), view_of(all), name);
}

void share_rows(const Mesh& mesh, TrainState& state) {
  if (mesh.data_size() == 1) return;
  share_rows(mesh, state.dictionary.w_enc_ld, state, "rows W_enc");
  if (!state.dictionary.tied()) share_rows(mesh, state.dictionary.w_dec_ld, state, "rows W_dec");
  share_rows(mesh, state.dictionary.b_enc_l, state, "rows b_enc");
}

double gradient_norm(const Mesh& mesh, double own_square, const at::Tensor& b_dec_d) {
  const int64_t d = b_dec_d.size(0);
  at::Tensor sums = at::empty({d + 1}, b_dec_d.options());
  sums.narrow(0, 0, d).copy_(b_dec_d);
  sums.narrow(0, d, 1).fill_(own_square);
  mesh.world->all_reduce(view_of(sums), ReduceOp::sum, "gradient norm");
  const double b_dec_square = sum_of_squares(sums.narrow(0, 0, d));
  return std::sqrt(sums[d].item<double>() + b_dec_square);
}

}  // namespace megadict
