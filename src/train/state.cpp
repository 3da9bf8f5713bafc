#include "train/state.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace megadict {

at::Tensor with_padding(const at::Tensor& rows_ld, int64_t padded) {
  if (rows_ld.dim() == 1) return rows_ld.as_strided({padded}, {1});
  return rows_ld.as_strided({padded, rows_ld.size(1)}, {rows_ld.size(1), 1});
}

Range own_rows(int64_t latents, int data_size, int index) {
  const int64_t block = ceil_div(latents, data_size);
  return {std::min(index * block, latents), std::min((index + 1) * block, latents)};
}

namespace {

Moments zero_moments(const Optimiser& optimiser, const at::Tensor& like, int64_t rows) {
  std::vector<int64_t> shape = like.sizes().vec();
  shape[0] = rows;
  const auto zeros = [&](bool wanted) {
    return wanted ? at::zeros(shape, like.options()) : at::Tensor();
  };
  return {zeros(optimiser.first_moment), zeros(optimiser.second_moment)};
}

}  // namespace

void reset_optimiser(const Mesh& mesh, const Optimiser& optimiser, bool with_ema,
                     TrainState& state) {
  const Dictionary& dictionary = state.dictionary;
  state.data_size = mesh.data_size();
  state.block = ceil_div(dictionary.latents.size(), mesh.data_size());
  state.own = own_rows(dictionary.latents.size(), mesh.data_size(), mesh.data_index);
  const int64_t rows = state.own.size();
  state.w_enc = zero_moments(optimiser, dictionary.w_enc_ld, rows);
  if (!dictionary.tied()) state.w_dec = zero_moments(optimiser, dictionary.w_dec_ld, rows);
  state.b_enc = zero_moments(optimiser, dictionary.b_enc_l, rows);
  state.b_dec = zero_moments(optimiser, dictionary.b_dec_d, dictionary.d);
  for (auto* list : {&state.extra, &state.hidden}) list->clear();
  for (auto* list : {&state.ema_extra, &state.ema_hidden}) list->clear();
  for (const at::Tensor& extra : dictionary.extra_l)
    state.extra.push_back(zero_moments(optimiser, extra, rows));
  for (const at::Tensor& hidden : dictionary.hidden)
    state.hidden.push_back(zero_moments(optimiser, hidden, hidden.size(0)));
  const auto counters = dictionary.b_enc_l.options().dtype(at::kLong);
  state.last_step_l = optimiser.lazy ? at::zeros({rows}, counters) : at::Tensor();
  state.tokens_since_fired_l = at::zeros({dictionary.latents.size()}, counters);
  if (!with_ema) return;
  state.ema_w_enc = dictionary.w_enc_ld.narrow(0, state.own.begin, rows).clone();
  if (!dictionary.tied())
    state.ema_w_dec = dictionary.w_dec_ld.narrow(0, state.own.begin, rows).clone();
  state.ema_b_enc = dictionary.b_enc_l.narrow(0, state.own.begin, rows).clone();
  state.ema_b_dec = dictionary.b_dec_d.clone();
  for (const at::Tensor& extra : dictionary.extra_l)
    state.ema_extra.push_back(extra.narrow(0, state.own.begin, rows).clone());
  for (const at::Tensor& hidden : dictionary.hidden) state.ema_hidden.push_back(hidden.clone());
}

LatentRows own_latents(const TrainState& state) {
  const Dictionary& d = state.dictionary;
  const auto mine = [&](const at::Tensor& t) {
    return t.narrow(0, state.own.begin, state.own.size());
  };
  LatentRows out{{mine(d.w_enc_ld), state.w_enc.m, state.w_enc.v}, {}, {}, state.last_step_l};
  out.w_dec = d.tied() ? out.w_enc : Parameter{mine(d.w_dec_ld), state.w_dec.m, state.w_dec.v};
  out.b_enc = {mine(d.b_enc_l), state.b_enc.m, state.b_enc.v};
  return out;
}

}  // namespace megadict
