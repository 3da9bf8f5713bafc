#include "train/hidden_update.h"

#include <ATen/ATen.h>

#include "model/forward.h"
#include "model/hidden.h"
#include "model/tensor_views.h"

namespace megadict {

double sum_hidden(const Mesh& mesh, std::span<at::Tensor> gradients) {
  if (gradients.empty()) return 0;
  std::vector<at::Tensor> flat;
  for (const at::Tensor& gradient : gradients) flat.push_back(gradient.flatten());
  at::Tensor all = at::cat(flat);
  mesh.world->all_reduce(view_of(all), ReduceOp::sum, "gradients of hidden layers");
  int64_t first = 0;
  for (at::Tensor& gradient : gradients) {
    gradient.view({-1}).copy_(all.narrow(0, first, gradient.numel()));
    first += gradient.numel();
  }
  return sum_of_squares(all);
}

void update_hidden(std::span<const at::Tensor> gradients, const OptimConfig& optim,
                   const UpdateArgs& args, TrainState& state) {
  Dictionary& dictionary = state.dictionary;
  const auto parameters = hidden_parameters(dictionary.config, dictionary.d);
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (parameters[i].norm && !optim.train_norms) continue;
    const auto rows = [](const at::Tensor& t) {
      return !t.defined() || t.dim() > 1 ? t : t.unsqueeze(0);
    };
    if (parameters[i].decays) dictionary.hidden[i].mul_(1 - args.lr * optim.hidden_decay);
    Parameter all{rows(dictionary.hidden[i]), rows(state.hidden[i].m), rows(state.hidden[i].v)};
    UpdateArgs its = args;
    its.unit_rows = parameters[i].unit_rows;
    kernels_for(all.w).update_rows(all, rows(gradients[i]), {}, its);
  }
}

void decay_decoder_rows(const OptimConfig& optim, double lr, TrainState& state) {
  if (!has_back(state.dictionary.config)) return;
  own_latents(state).w_dec.w.mul_(1 - lr * optim.hidden_decay);
}

}  // namespace megadict
