#include "train/preact.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "model/code_entries.h"
#include "model/forward.h"
#include "model/tensor_views.h"
#include "train/dead.h"

namespace megadict {

namespace {

// The lists of the latents that are set, the others empty.
LatentCodes lists_where(const LatentCodes& codes, const at::Tensor& set_l) {
  // Of a level of a matryoshka dictionary, entries of other levels are there, in no list.
  const int64_t first = codes.latent_start[0].item<int64_t>();
  const at::Tensor counts = codes.latent_start.diff();
  const at::Tensor kept = at::repeat_interleave(set_l, counts);
  const auto entries = [&](const at::Tensor& all) {
    return all.narrow(0, first, kept.size(0)).masked_select(kept);
  };
  LatentCodes out{codes.rows, codes.latents, at::zeros_like(codes.latent_start), entries(codes.row),
                  entries(codes.value)};
  at::Tensor ends = out.latent_start.narrow(0, 1, codes.latents);
  at::cumsum_out(ends, counts * set_l, 0);
  return out;
}

// One entry of row 0 for each latent that is set.
LatentCodes one_entry_where(const at::Tensor& set_l) {
  const int64_t entries = set_l.sum().item<int64_t>();
  LatentCodes out{1, set_l.size(0),
                  at::zeros({set_l.size(0) + 1}, set_l.options().dtype(at::kLong)),
                  at::zeros({entries}, set_l.options().dtype(at::kInt)),
                  at::zeros({entries}, set_l.options().dtype(at::kFloat))};
  at::Tensor ends = out.latent_start.narrow(0, 1, set_l.size(0));
  at::cumsum_out(ends, set_l.to(at::kLong), 0);
  return out;
}

at::Tensor dead_of(const Preact& preact, Range which) {
  return preact.dead_l.narrow(0, which.begin, which.size());
}

// The loss falls with v: slopes are negative, and those of rows on which a latent fired taken back.
double slope_of_all(const Preact& preact, int64_t batch_rows) {
  return -preact.weight * static_cast<double>(batch_rows);
}

const CodePath kNotDecoder{.decoder = false};

// fn of the dead rows, a block at a time: a copy of them all may be as large as the dictionary.
template <class Fn>
at::Tensor of_dead_rows(const at::Tensor& rows_ld, const at::Tensor& dead, const Fn& fn) {
  constexpr int64_t kBlock = 1024;
  std::vector<at::Tensor> parts = {at::empty({0}, rows_ld.options().dtype(at::kDouble))};
  for (int64_t begin = 0; begin < dead.size(0); begin += kBlock) {
    const int64_t count = std::min(kBlock, dead.size(0) - begin);
    parts.push_back(fn(rows_ld.index_select(0, dead.narrow(0, begin, count))));
  }
  return at::cat(parts);
}

}  // namespace

Preact make_preact(const TrainState& state, double coefficient, int64_t window_tokens, Sums sums) {
  Preact out;
  if (coefficient == 0 || state.tokens < window_tokens) return out;
  const Dictionary& dictionary = state.dictionary;
  out.weight = coefficient / state.var_total;
  out.sums = sums;
  out.dead_l = dead_mask(state, window_tokens);
  const at::Tensor dead = out.dead_l.nonzero().squeeze(1);
  out.norm_l = at::zeros(out.dead_l.sizes(), out.dead_l.options().dtype(at::kDouble));
  out.norm_l.index_copy_(0, dead, of_dead_rows(dictionary.w_dec_ld, dead, norms_of_rows));
  out.sum_d = at::zeros({dictionary.d}, out.norm_l.options());
  return out;
}

void add_to_preact(const Dictionary& dictionary, const at::Tensor& own_rd, const Codes& codes,
                   Preact& preact, LatentTerms& terms) {
  if (preact.sums == Sums::exact)
    preact.rows.push_back(own_rd.to(at::kDouble));
  else
    preact.sum_d += own_rd.sum(0, false, at::kDouble);
  if (codes.nnz() == 0) return;
  const Codes fired = entries_where(codes, preact.dead_l.index_select(0, codes.latent));
  if (fired.nnz() == 0) return;
  const at::Tensor above = fired.value - dictionary.extra_l[0].index_select(0, fired.latent);
  const at::Tensor norm = preact.norm_l.index_select(0, fired.latent);
  preact.fired += (above.to(at::kDouble) * norm).sum().item<double>();
  const at::Tensor none = at::zeros_like(fired.value);
  terms.latent.push_back(fired.latent);
  terms.term_ec.push_back(at::stack({none, none, at::ones_like(none)}, 1));
}

double finish_preact(const Mesh& mesh, const Dictionary& dictionary, int64_t batch_rows,
                     Preact& preact) {
  at::Tensor sum = preact.sum_d;
  if (preact.sums == Sums::exact)
    sum = exact_sum(mesh, at::cat(preact.rows), batch_rows, "row sum");
  else
    mesh.world->all_reduce(view_of(sum), ReduceOp::sum, "row sum");
  const auto batch = static_cast<double>(batch_rows);
  preact.mean_d = (sum / batch).to(at::kFloat);
  double loss = preact.fired;
  if (mesh.data_index == 0) {
    const at::Tensor dead = preact.dead_l.nonzero().squeeze(1);
    const auto of = [&](const at::Tensor& t) { return t.index_select(0, dead).to(at::kDouble); };
    const at::Tensor along = of_dead_rows(dictionary.w_enc_ld, dead, [&](const at::Tensor& rows) {
      return rows.to(at::kDouble).mv(sum);
    });
    const at::Tensor below = batch * (of(dictionary.extra_l[0]) - of(dictionary.b_enc_l)) - along;
    loss += (below * of(preact.norm_l)).sum().item<double>();
  }
  return preact.weight * loss;
}

PreactSources::PreactSources(const Preact& preact, Range which, int64_t batch_rows,
                             std::span<const BatchPart> parts) {
  if (!preact.active()) return;
  const at::Tensor dead = dead_of(preact, which);
  all = one_entry_where(dead);
  mean_1d = preact.mean_d.unsqueeze(0);
  sources.push_back({all, mean_1d, no_g, 1, slope_of_all(preact, batch_rows), {}, kNotDecoder});
  fired.reserve(parts.size());
  for (const BatchPart& part : parts) {
    fired.push_back(lists_where(part.codes, dead));
    sources.push_back({fired.back(), part.xc_bd, no_g, 1, preact.weight, {}, kNotDecoder});
  }
}

void add_all_rows(const Dictionary& dictionary, const Preact& preact, int64_t batch_rows,
                  RowGradients& gradients) {
  const at::Tensor mean_1d = preact.mean_d.unsqueeze(0);
  kernels_for(mean_1d).row_gradients({one_entry_where(preact.dead_l),
                                      mean_1d,
                                      {},
                                      dictionary.w_dec_ld,
                                      slope_of_all(preact, batch_rows),
                                      kNotDecoder},
                                     gradients);
}

void add_fired(const Dictionary& dictionary, const Preact& preact, const BatchPart& part,
               RowGradients& gradients) {
  kernels_for(part.xc_bd)
      .row_gradients({lists_where(part.codes, preact.dead_l),
                      part.xc_bd,
                      {},
                      dictionary.w_dec_ld,
                      preact.weight,
                      kNotDecoder},
                     gradients);
}

}  // namespace megadict
