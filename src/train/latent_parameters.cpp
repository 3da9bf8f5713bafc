#include "train/latent_parameters.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/fixed_point.h"
#include "kernels/kernel_set.h"
#include "model/activations.h"
#include "model/tensor_views.h"
#include "train/exchange.h"

namespace megadict {

namespace {

// Of each column.
std::vector<double> largest_terms(const LatentTerms& terms) {
  std::vector<double> largest(static_cast<size_t>(terms.sums));
  for (const at::Tensor& term_ec : terms.term_ec)
    for (int64_t i = 0; i < term_ec.size(1); ++i) {
      double& so_far = largest[static_cast<size_t>(i)];
      so_far = std::max(so_far, largest_magnitude(term_ec.select(1, i)));
    }
  return largest;
}

// The sums of each own row over the whole batch: [own, sums] fp64.
at::Tensor sums_of_latents(const Mesh& mesh, const TrainState& state, const LatentTerms& terms,
                           int64_t batch_rows, Sums sums) {
  const auto fp64 = at::TensorOptions(at::kDouble).device(state.dictionary.b_enc_l.device());
  const bool exact = sums == Sums::exact;
  at::Tensor up = at::ones({terms.sums}, at::kDouble), down = at::ones({terms.sums}, at::kDouble);
  if (exact) {
    std::vector<double> largest = largest_terms(terms);
    mesh.world->all_reduce(view_of(largest.data(), terms.sums), ReduceOp::max, "largest term");
    for (int64_t i = 0; i < terms.sums; ++i) {
      const double its = largest[static_cast<size_t>(i)];
      // What is not finite is found in the residual, and ends the run.
      if (!std::isfinite(its))
        return at::full({state.own.size(), terms.sums}, std::numeric_limits<double>::quiet_NaN(),
                        fp64);
      const FixedPoint unit = fixed_point(its, batch_rows);
      up[i] = unit.up;
      down[i] = unit.down;
    }
  }
  at::Tensor all =
      at::zeros({state.padded(), terms.sums}, fp64.dtype(exact ? at::kLong : at::kDouble));
  for (size_t i = 0; i < terms.latent.size(); ++i) {
    at::Tensor term = terms.term_ec[i].to(at::kDouble);
    const int64_t columns = term.size(1);
    if (exact) term = term.mul_(up.narrow(0, 0, columns).to(term.device())).round_().to(at::kLong);
    all.narrow(1, 0, columns).index_add_(0, terms.latent[i], term);
  }
  at::Tensor own = all;
  if (mesh.data_size() > 1) {
    own = at::empty({state.block, terms.sums}, all.options());
    const at::Tensor& send = all;
    mesh.data->reduce_scatter(view_of(send), view_of(own), "terms of latents");
  }
  return own.narrow(0, 0, state.own.size()).to(at::kDouble) * down.to(fp64.device());
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
  to.term_ec.push_back(at::stack({g, at::ones_like(g)}, 1));
}

void add_magnitudes(const Dictionary& dictionary, const Codes& codes, const at::Tensor& g_bd,
                    LatentTerms& to) {
  if (codes.nnz() == 0) return;
  const at::Tensor s = kernels_for(g_bd).products(codes, g_bd, dictionary.w_dec_ld);
  to.latent.push_back(codes.latent);
  to.term_ec.push_back(at::stack({s, s * codes.value}, 1));
}

L0Penalty l0_penalty(const ModelConfig& model, double weight, double l0) {
  if (model.l0_target == 0) return {weight * l0, weight};
  const double off = l0 / model.l0_target - 1;
  return {weight * off * off, weight * 2 * off / model.l0_target};
}

std::vector<at::Tensor> extra_gradients(const Mesh& mesh, const TrainState& state,
                                        const LatentTerms& terms, const ThresholdPull& pull,
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
  const at::Tensor theta = parameter(0);
  at::Tensor g = theta * first + second * pull.l0_slope;
  g = g / -dictionary.config.jumprelu_bandwidth;
  // Of dead latents, on the rows on which they did not fire.
  if (pull.preact > 0)
    g += (static_cast<double>(batch_rows) - own.select(1, 2)) * own_part(state, pull.norm_l) *
         pull.preact;
  if (dictionary.config.jumprelu_log) g = g * theta;
  return {g.to(at::kFloat)};
}

int64_t update_extra(const Mesh& mesh, std::span<const at::Tensor> gradients,
                     const UpdateArgs& args, TrainState& state) {
  const Dictionary& dictionary = state.dictionary;
  const auto parameters = activation_named(dictionary.config.activation).parameters;
  int64_t skipped = 0;
  for (size_t i = 0; i < gradients.size(); ++i) {
    const at::Tensor mine = own_part(state, dictionary.extra_l[i]);
    // A logarithm moves from wherever it is: a threshold that is left alone keeps its bits.
    const bool by_factors = dictionary.config.jumprelu_log;
    Parameter row{by_factors ? at::zeros_like(mine) : mine, state.extra[i].m, state.extra[i].v};
    skipped += kernels_for(mine).update_rows(row, gradients[i], {}, args);
    if (by_factors) mine.mul_(exp_each(row.w));
    if (parameters[i].positive) mine.clamp_min_(0);
    share_rows(mesh, dictionary.extra_l[i], state, "rows of latent parameters");
  }
  return skipped;
}

}  // namespace megadict
