#include "train/latent_parameters.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "kernels/fixed_point.h"
#include "kernels/kernel_set.h"
#include "model/activations.h"
#include "model/tensor_views.h"
#include "train/exchange.h"

namespace megadict {

namespace {

double largest_product(const Edges& edges) {
  double largest = 0;
  for (const at::Tensor& product : edges.product)
    largest = std::max(largest, product.numel() > 0 ? largest_magnitude(product) : 0);
  return largest;
}

// The sum of g and the number of edges of each own row, over the whole batch: [own, 2] fp64.
at::Tensor edge_sums(const Mesh& mesh, const TrainState& state, const Edges& edges,
                     int64_t batch_rows, Sums sums) {
  FixedPoint unit;
  const bool exact = sums == Sums::exact;
  if (exact) {
    const double largest = largest_of_all(mesh, largest_product(edges), "largest edge");
    // What is not finite is found in the residual, and ends the run.
    if (!std::isfinite(largest))
      return at::full({state.own.size(), 2}, std::numeric_limits<double>::quiet_NaN(),
                      state.dictionary.b_enc_l.options().dtype(at::kDouble));
    unit = fixed_point(largest, batch_rows);
  }
  const at::Device device = state.dictionary.b_enc_l.device();
  at::Tensor all = at::zeros({state.padded(), 2},
                             at::TensorOptions(exact ? at::kLong : at::kDouble).device(device));
  for (size_t i = 0; i < edges.latent.size(); ++i) {
    at::Tensor product = edges.product[i].to(at::kDouble);
    if (exact) product = product.mul_(unit.up).round_().to(at::kLong);
    all.index_add_(0, edges.latent[i], at::stack({product, at::ones_like(product)}, 1));
  }
  at::Tensor own = all;
  if (mesh.data_size() > 1) {
    own = at::empty({state.block, 2}, all.options());
    const at::Tensor& send = all;
    mesh.data->reduce_scatter(view_of(send), view_of(own), "edges");
  }
  own = own.narrow(0, 0, state.own.size()).to(at::kDouble);
  own.select(1, 0).mul_(unit.down);
  return own;
}

at::Tensor own_part(const TrainState& state, const at::Tensor& rows_l) {
  return rows_l.narrow(0, state.own.begin, state.own.size());
}

}  // namespace

void add_edges(const Dictionary& dictionary, const Codes& edges, const at::Tensor& g_bd,
               Edges& to) {
  if (edges.nnz() == 0) return;
  to.latent.push_back(edges.latent);
  to.product.push_back(kernels_for(g_bd).products(edges, g_bd, dictionary.w_dec_ld));
}

L0Penalty l0_penalty(const ModelConfig& model, double weight, double l0) {
  if (model.l0_target == 0) return {weight * l0, weight};
  const double off = l0 / model.l0_target - 1;
  return {weight * off * off, weight * 2 * off / model.l0_target};
}

std::vector<at::Tensor> extra_gradients(const Mesh& mesh, const TrainState& state,
                                        const Edges& edges, double l0_slope, int64_t batch_rows,
                                        Sums sums) {
  const Dictionary& dictionary = state.dictionary;
  if (dictionary.extra_l.empty()) return {};
  const at::Tensor own = edge_sums(mesh, state, edges, batch_rows, sums);
  const at::Tensor theta = own_part(state, dictionary.extra_l[0]).to(at::kDouble);
  const at::Tensor g = theta * own.select(1, 0) + own.select(1, 1) * l0_slope;
  return {(g / -dictionary.config.jumprelu_bandwidth).to(at::kFloat)};
}

int64_t update_extra(const Mesh& mesh, std::span<const at::Tensor> gradients,
                     const UpdateArgs& args, TrainState& state) {
  constexpr const char* kShared[] = {"rows threshold"};
  const Dictionary& dictionary = state.dictionary;
  const auto parameters = activation_named(dictionary.config.activation).parameters;
  int64_t skipped = 0;
  for (size_t i = 0; i < gradients.size(); ++i) {
    const at::Tensor mine = own_part(state, dictionary.extra_l[i]);
    Parameter row{mine, state.extra[i].m, state.extra[i].v};
    skipped += kernels_for(mine).update_rows(row, gradients[i], {}, args);
    mine.clamp_min_(parameters[i].least);
    share_rows(mesh, dictionary.extra_l[i], state, kShared[i]);
  }
  return skipped;
}

}  // namespace megadict
