#include "train/latent_parameters.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/fixed_point.h"
#include "kernels/kernel_set.h"
#include "model/activations.h"
#include "model/tensor_views.h"
#include "train/exchange.h"

namespace megadict {

namespace {

// Of each of the two columns.
std::array<double, 2> largest_terms(const LatentTerms& terms) {
  std::array<double, 2> largest = {};
  for (const at::Tensor& term_e2 : terms.term_e2)
    for (size_t i = 0; i < 2; ++i)
      largest[i] = std::max(largest[i], largest_magnitude(term_e2.select(1, static_cast<int>(i))));
  return largest;
}

// The two sums of each own row over the whole batch: [own, 2] fp64.
at::Tensor sums_of_latents(const Mesh& mesh, const TrainState& state, const LatentTerms& terms,
                           int64_t batch_rows, Sums sums) {
  const auto fp64 = at::TensorOptions(at::kDouble).device(state.dictionary.b_enc_l.device());
  const bool exact = sums == Sums::exact;
  at::Tensor up, down;
  if (exact) {
    std::array<double, 2> largest = largest_terms(terms);
    mesh.world->all_reduce(view_of(largest.data(), 2), ReduceOp::max, "largest term");
    // What is not finite is found in the residual, and ends the run.
    if (!std::isfinite(largest[0]) || !std::isfinite(largest[1]))
      return at::full({state.own.size(), 2}, std::numeric_limits<double>::quiet_NaN(), fp64);
    const FixedPoint units[2] = {fixed_point(largest[0], batch_rows),
                                 fixed_point(largest[1], batch_rows)};
    up = at::tensor({units[0].up, units[1].up}, fp64);
    down = at::tensor({units[0].down, units[1].down}, fp64);
  }
  at::Tensor all = at::zeros({state.padded(), 2}, fp64.dtype(exact ? at::kLong : at::kDouble));
  for (size_t i = 0; i < terms.latent.size(); ++i) {
    at::Tensor term = terms.term_e2[i].to(at::kDouble);
    if (exact) term = term.mul_(up).round_().to(at::kLong);
    all.index_add_(0, terms.latent[i], term);
  }
  at::Tensor own = all;
  if (mesh.data_size() > 1) {
    own = at::empty({state.block, 2}, all.options());
    const at::Tensor& send = all;
    mesh.data->reduce_scatter(view_of(send), view_of(own), "terms of latents");
  }
  own = own.narrow(0, 0, state.own.size()).to(at::kDouble);
  return exact ? own.mul_(down) : own;
}

at::Tensor own_part(const TrainState& state, const at::Tensor& rows_l) {
  return rows_l.narrow(0, state.own.begin, state.own.size());
}

}  // namespace

void add_edges(const Dictionary& dictionary, const Codes& edges, const at::Tensor& g_bd,
               LatentTerms& to) {
  if (edges.nnz() == 0) return;
  const at::Tensor g = kernels_for(g_bd).products(edges, g_bd, dictionary.w_dec_ld);
  to.latent.push_back(edges.latent);
  to.term_e2.push_back(at::stack({g, at::ones_like(g)}, 1));
}

void add_magnitudes(const Dictionary& dictionary, const Codes& codes, const at::Tensor& g_bd,
                    LatentTerms& to) {
  if (codes.nnz() == 0) return;
  const at::Tensor s = kernels_for(g_bd).products(codes, g_bd, dictionary.w_dec_ld);
  to.latent.push_back(codes.latent);
  to.term_e2.push_back(at::stack({s, s * codes.value}, 1));
}

L0Penalty l0_penalty(const ModelConfig& model, double weight, double l0) {
  if (model.l0_target == 0) return {weight * l0, weight};
  const double off = l0 / model.l0_target - 1;
  return {weight * off * off, weight * 2 * off / model.l0_target};
}

std::vector<at::Tensor> extra_gradients(const Mesh& mesh, const TrainState& state,
                                        const LatentTerms& terms, double l0_slope,
                                        int64_t batch_rows, Sums sums) {
  const Dictionary& dictionary = state.dictionary;
  if (dictionary.extra_l.empty()) return {};
  const at::Tensor own = sums_of_latents(mesh, state, terms, batch_rows, sums);
  const at::Tensor first = own.select(1, 0), second = own.select(1, 1);
  const auto parameter = [&](size_t i) {
    return own_part(state, dictionary.extra_l[i]).to(at::kDouble);
  };
  if (activation_named(dictionary.config.activation).has_gates)
    return {(second - parameter(1) * first).to(at::kFloat), first.to(at::kFloat)};
  const at::Tensor g = parameter(0) * first + second * l0_slope;
  return {(g / -dictionary.config.jumprelu_bandwidth).to(at::kFloat)};
}

int64_t update_extra(const Mesh& mesh, std::span<const at::Tensor> gradients,
                     const UpdateArgs& args, TrainState& state) {
  const Dictionary& dictionary = state.dictionary;
  const auto parameters = activation_named(dictionary.config.activation).parameters;
  int64_t skipped = 0;
  for (size_t i = 0; i < gradients.size(); ++i) {
    const at::Tensor mine = own_part(state, dictionary.extra_l[i]);
    Parameter row{mine, state.extra[i].m, state.extra[i].v};
    skipped += kernels_for(mine).update_rows(row, gradients[i], {}, args);
    mine.clamp_min_(parameters[i].least);
    share_rows(mesh, dictionary.extra_l[i], state, "rows of latent parameters");
  }
  return skipped;
}

}  // namespace megadict
