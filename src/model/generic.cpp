#include "model/generic.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/variable.h>

#include <limits>

#include "model/hidden.h"
#include "model/matryoshka.h"
#include "model/tensor_views.h"

namespace megadict {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

at::Tensor all_reduced(Communicator* comm, const at::Tensor& tensor, const char* name) {
  at::Tensor out = tensor.detach().contiguous().clone();
  comm->all_reduce(view_of(out), ReduceOp::sum, name);
  return out;
}

// Forward: the sum over a feature row's partial results. Backward: every partial gets the gradient
// of the sum as it is (each rank computes the same loss from the same sum).
struct SumForward : Function<SumForward> {
  static at::Tensor forward(AutogradContext*, const at::Tensor& partial, int64_t comm) {
    return all_reduced(reinterpret_cast<Communicator*>(comm), partial, "generic sum");
  }
  static variable_list backward(AutogradContext*, variable_list gradient) {
    return {gradient[0], at::Tensor()};
  }
};

// Forward: identity on something every shard holds (x - b_dec). Backward: the shards' gradients
// add up.
struct SumBackward : Function<SumBackward> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, int64_t comm) {
    context->saved_data["comm"] = comm;
    return x.view_as(x);
  }
  static variable_list backward(AutogradContext* context, variable_list gradient) {
    auto* comm = reinterpret_cast<Communicator*>(context->saved_data["comm"].toInt());
    return {all_reduced(comm, gradient[0], "generic gradient"), at::Tensor()};
  }
};

// B8: u 1[u > theta], or the count 1[u > theta]. Theta's gradient goes through a rectangle as wide
// as the bandwidth, u's through the open ones alone.
struct Jump : Function<Jump> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& u, const at::Tensor& theta,
                            double bandwidth, bool count) {
    context->save_for_backward({u, theta});
    context->saved_data["bandwidth"] = bandwidth;
    context->saved_data["count"] = count;
    const at::Tensor open = u.gt(theta).to(at::kFloat);
    return count ? open : u * open;
  }
  static variable_list backward(AutogradContext* context, variable_list gradient) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &u = saved[0], &theta = saved[1];
    const double bandwidth = context->saved_data["bandwidth"].toDouble();
    const bool count = context->saved_data["count"].toBool();
    const at::Tensor kernel = ((u - theta) / bandwidth).abs().lt(0.5) / bandwidth;
    const at::Tensor of_edge = gradient[0] * kernel;
    return {count ? at::Tensor() : gradient[0] * u.gt(theta),
            -(count ? of_edge : of_edge * theta).sum(0), at::Tensor(), at::Tensor()};
  }
};

// Which of my pre-activations are among the k best of their whole row, by sorting all of them:
// the slow, obvious version. `allowed_l` limits the choice (AuxK).
at::Tensor topk_mask(const Mesh& mesh, const at::Tensor& v_bl, int64_t k, int64_t n,
                     const at::Tensor& allowed_l) {
  const int64_t shards = mesh.feature_size(), widest = shard_of(n, shards, 0).size();
  at::Tensor mine = at::full({v_bl.size(0), widest}, -std::numeric_limits<float>::infinity());
  mine.narrow(1, 0, v_bl.size(1))
      .copy_(v_bl.detach().masked_fill(allowed_l.logical_not(),
                                       -std::numeric_limits<float>::infinity()));
  at::Tensor all = at::empty({shards, v_bl.size(0), widest});
  mesh.feature->all_gather(view_of(static_cast<const at::Tensor&>(mine)), view_of(all),
                           "generic pre-activations");
  std::vector<at::Tensor> parts;
  int64_t first = 0;
  for (int64_t f = 0; f < shards; ++f) {
    const int64_t count = shard_of(n, shards, f).size();
    if (f < mesh.feature_index) first += count;
    parts.push_back(all[f].narrow(1, 0, count));
  }
  const at::Tensor row = at::cat(parts, 1);
  const at::Tensor order = std::get<1>(row.sort(/*stable=*/true, 1, /*descending=*/true));
  at::Tensor mask = at::zeros_like(row, at::kBool);
  mask.scatter_(1, order.narrow(1, 0, std::min(k, n)), true);
  return mask.narrow(1, first, v_bl.size(1)).logical_and(allowed_l);
}

// Which of my pre-activations are among the B k best of the whole batch: every rank sorts all of
// them, in the order of (row, latent).
at::Tensor batch_topk_mask(const Mesh& mesh, const at::Tensor& v_bl, int64_t k, int64_t n,
                           const Rows& rows) {
  const float none = -std::numeric_limits<float>::infinity();
  const int64_t shards = mesh.feature_size(), data = mesh.data_size();
  const int64_t widest = shard_of(n, shards, 0).size();
  const int64_t longest = shard_of(rows.batch_rows, data, 0).size();
  at::Tensor mine = at::full({longest, widest}, none);
  mine.narrow(0, 0, v_bl.size(0)).narrow(1, 0, v_bl.size(1)).copy_(v_bl.detach());
  at::Tensor all = at::empty({data * shards, longest, widest});
  mesh.world->all_gather(view_of(static_cast<const at::Tensor&>(mine)), view_of(all),
                         "generic pre-activations");
  at::Tensor whole = at::full({rows.batch_rows, n}, none);
  for (int64_t d = 0; d < data; ++d)
    for (int64_t f = 0; f < shards; ++f) {
      const Range tokens = shard_of(rows.batch_rows, data, d), latents = shard_of(n, shards, f);
      whole.narrow(0, tokens.begin, tokens.size())
          .narrow(1, latents.begin, latents.size())
          .copy_(all[d * shards + f].narrow(0, 0, tokens.size()).narrow(1, 0, latents.size()));
    }
  const at::Tensor flat = whole.flatten();
  const at::Tensor order = std::get<1>(flat.sort(/*stable=*/true, 0, /*descending=*/true));
  at::Tensor mask = at::zeros_like(flat, at::kBool);
  mask.index_fill_(0, order.narrow(0, 0, std::min(rows.batch_rows * k, flat.numel())), true);
  return mask.view_as(whole)
      .narrow(0, rows.part.row_range.begin, v_bl.size(0))
      .narrow(1, shard_of(n, shards, mesh.feature_index).begin, v_bl.size(1));
}

struct Leaves {
  at::Tensor w_enc, w_dec, b_enc, b_dec;
  std::vector<at::Tensor> learnt = {}, extra = {};  // logarithms with jumprelu_log
  std::vector<at::Tensor> hidden = {};
};

at::Tensor leaf(const at::Tensor& tensor) {
  return tensor.detach().clone().set_requires_grad(true);
}

struct Pass {
  const Mesh& mesh;
  const Dictionary& dictionary;
  const GenericArgs& args;
  const Leaves& p;
  int64_t comm;

  at::Tensor decode(const at::Tensor& z, const at::Tensor& w_dec) const {
    return SumForward::apply(z.mm(w_dec), comm);
  }

  // x_hat - b_dec of each prefix of the latents.
  std::vector<at::Tensor> prefixes(const at::Tensor& z) const {
    std::vector<at::Tensor> out;
    const at::Tensor id = at::arange(z.size(1)) + dictionary.latents.begin;
    for (const Level& level : levels_of(dictionary.config, dictionary.n))
      out.push_back(decode(z * id.lt(level.latents.end), p.w_dec));
    return out;
  }

  // Terms of the loss, as sums over my data row's tokens divided by B.
  at::Tensor auxk(const at::Tensor& v, const at::Tensor& residual, double target) const {
    double dead = args.dead_l.sum().item<double>();
    mesh.feature->all_reduce(megadict::view_of(&dead, 1), ReduceOp::sum, "generic dead");
    if (dead == 0) return at::zeros({});
    const at::Tensor mask = topk_mask(mesh, v, args.k_aux, dictionary.n, args.dead_l);
    const at::Tensor e_hat = decode((v * mask).relu(), p.w_dec);
    const double share = std::min(dead / static_cast<double>(args.k_aux), 1.0);
    return (e_hat + residual.detach()).square().sum() * (args.auxk_alpha * share / target);
  }
};

// ReLU has no gradient at 0, which is where latents below their threshold are: it is left out
// there.
at::Tensor codes_of(const Mesh& mesh, const Dictionary& dictionary, const Rows& rows,
                    const Leaves& p, const at::Tensor& v) {
  const ActivationFn& activation = activation_named(dictionary.config.activation);
  if (activation.name == "jumprelu")
    return Jump::apply(v, p.extra[0], dictionary.config.jumprelu_bandwidth, false);
  if (activation.has_gates)
    return ((v - p.b_enc) * p.extra[0].exp() + p.extra[1]).relu() * v.detach().gt(0);
  const int64_t k = dictionary.config.k, n = dictionary.n;
  if (activation.whole_batch) return (v * batch_topk_mask(mesh, v, k, n, rows)).relu();
  const at::Tensor every = at::ones({v.size(1)}, at::kBool);
  return (activation.has_k ? v * topk_mask(mesh, v, k, n, every) : v).relu();
}

double world_sum(const Mesh& mesh, double mine, bool per_feature_rank);

// The L0 penalty's loss, of which each rank holds the same; its gradient flows through `mine`.
double add_l0(const Mesh& mesh, const ModelConfig& model, const GenericArgs& args,
              const at::Tensor& open, at::Tensor& mine) {
  const auto batch = static_cast<double>(args.batch_rows);
  const double weight = args.l0 / args.var_total, target = model.l0_target;
  const double l0 = world_sum(mesh, open.sum().item<double>(), true) / batch;
  const double slope = target > 0 ? 2 * (l0 / target - 1) / target : 1;
  mine = mine + open.sum() * (weight * slope / batch);
  return weight * (target > 0 ? (l0 / target - 1) * (l0 / target - 1) : l0);
}

double world_sum(const Mesh& mesh, double mine, bool per_feature_rank) {
  double sum = per_feature_rank || mesh.feature_index == 0 ? mine : 0;
  mesh.world->all_reduce(view_of(&sum, 1), ReduceOp::sum, "generic scalar");
  return sum;
}

at::Tensor over_data(const Mesh& mesh, const at::Tensor& gradient) {
  return all_reduced(mesh.data.get(), gradient, "generic data sum");
}

}  // namespace

GenericLoss generic_loss(const Mesh& mesh, const Dictionary& dictionary, const Rows& rows,
                         const GenericArgs& args) {
  const at::AutoGradMode grad_on(true);
  Leaves p{leaf(dictionary.w_enc_ld), {}, leaf(dictionary.b_enc_l), leaf(dictionary.b_dec_d)};
  p.w_dec = dictionary.tied() ? p.w_enc : leaf(dictionary.w_dec_ld);
  for (const at::Tensor& extra : dictionary.extra_l) {
    const bool log = dictionary.config.jumprelu_log;
    p.learnt.push_back(leaf(log ? extra.log() : extra));
    p.extra.push_back(log ? p.learnt.back().exp() : p.learnt.back());
  }
  const auto comm = reinterpret_cast<int64_t>(mesh.feature.get());
  const Pass pass{mesh, dictionary, args, p, comm};
  const auto batch = static_cast<double>(args.batch_rows);

  const at::Tensor x = rows.x_bd.narrow(0, 0, rows.real_rows());
  for (const at::Tensor& hidden : dictionary.hidden) p.hidden.push_back(leaf(hidden));
  const ModelConfig& model = dictionary.config;
  const at::Tensor xc = x - p.b_dec;
  const at::Tensor seen = has_front(model) ? in_front(model, p.hidden, x) : xc;
  const at::Tensor v = at::addmm(p.b_enc, SumBackward::apply(seen, comm), p.w_enc.t());
  // AuxK teaches the layers in front nothing.
  const at::Tensor v_aux = has_front(model) ? at::addmm(p.b_enc, seen.detach(), p.w_enc.t()) : v;
  const at::Tensor z = codes_of(mesh, dictionary, rows, p, v);
  std::vector<at::Tensor> prefixes = pass.prefixes(z);
  if (has_back(model)) prefixes.back() = behind(model, p.hidden, prefixes.back());
  const std::vector<Level> levels = levels_of(dictionary.config, dictionary.n);
  const at::Tensor residual = prefixes.back() - xc;
  const at::Tensor square = residual.square().sum();
  // The reconstruction terms are the same on every rank of a feature row, L1 is each shard's own.
  at::Tensor shared = at::zeros({});
  for (size_t i = 0; i < levels.size(); ++i)
    shared = shared + (prefixes[i] - xc).square().sum() * levels[i].weight;
  shared = shared / (batch * args.var_total);
  at::Tensor paid = z * p.w_dec.norm(2, 1);
  if (activation_named(dictionary.config.activation).has_gates) {
    const at::Tensor w_dec = p.w_dec.detach(), open = v.relu();
    shared =
        shared + (pass.decode(open, w_dec) - xc.detach()).square().sum() / (batch * args.var_total);
    paid = open * w_dec.norm(2, 1);
  }
  const at::Tensor l1 = paid.sum() * (args.l1 / (batch * args.var_total));
  if (args.auxk_alpha > 0)
    shared = shared + pass.auxk(v_aux, residual, world_sum(mesh, square.item<double>(), false));
  at::Tensor mine = shared + l1;
  at::Tensor pulled = at::zeros({});
  if (args.preact > 0) {
    const at::Tensor dead = args.dead_l.to(at::kFloat) * p.w_dec.detach().norm(2, 1);
    pulled = ((p.extra[0] - v).relu() * dead).sum() * (args.preact / (batch * args.var_total));
    mine = mine + pulled;
  }
  double l0_loss = 0;
  if (args.l0 > 0) {
    const at::Tensor open = Jump::apply(v, p.extra[0], dictionary.config.jumprelu_bandwidth, true);
    l0_loss = add_l0(mesh, dictionary.config, args, open, mine);
  }
  torch::autograd::backward({mine}, {});

  GenericLoss out;
  out.fvu = world_sum(mesh, square.item<double>(), false) / (batch * args.var_total);
  out.loss = world_sum(mesh, shared.item<double>(), false) +
             world_sum(mesh, l1.item<double>(), true) +
             world_sum(mesh, pulled.item<double>(), true) + l0_loss;
  const auto gradient = [](const at::Tensor& t) {
    return t.grad().defined() ? t.grad() : at::zeros_like(t);
  };
  out.w_enc_ld = over_data(mesh, gradient(p.w_enc));
  out.w_dec_ld = dictionary.tied() ? out.w_enc_ld : over_data(mesh, gradient(p.w_dec));
  out.b_enc_l = over_data(mesh, gradient(p.b_enc));
  out.b_dec_d = over_data(mesh, gradient(p.b_dec));
  for (const at::Tensor& learnt : p.learnt)
    out.extra_l.push_back(over_data(mesh, gradient(learnt)));
  for (const at::Tensor& hidden : p.hidden) out.hidden.push_back(over_data(mesh, gradient(hidden)));
  return out;
}

}  // namespace megadict
