#include "train/exact_b_dec.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "model/tensor_views.h"

namespace megadict {

namespace {

double longest_row(const at::Tensor& rows_bd) {
  if (rows_bd.size(0) == 0) return 0;
  const double square = row_squares(rows_bd).max().item<double>();
  return std::isfinite(square) ? std::sqrt(square) : std::numeric_limits<double>::infinity();
}

// Of the own latents' lists, all parts together and AuxK's with them.
struct Lists {
  int64_t longest[2] = {};  // of the codes, of AuxK's
  int64_t entries = 0;
};

Lists measure(std::span<const BatchPart> parts) {
  at::Tensor counts, aux_counts;
  const auto add = [](at::Tensor& sum, const LatentCodes& codes) {
    const at::Tensor more = codes.latent_start.diff();
    sum = sum.defined() ? sum + more : more;
  };
  for (const BatchPart& part : parts) {
    add(counts, part.codes);
    if (part.aux) add(aux_counts, part.aux->codes);
  }
  Lists out;
  const at::Tensor both[2] = {counts, aux_counts};
  for (int i = 0; i < 2; ++i) {
    if (!both[i].defined() || both[i].numel() == 0) continue;
    out.longest[i] = both[i].max().item<int64_t>();
    out.entries += both[i].sum().item<int64_t>();
  }
  return out;
}

// Of the slopes on their way to the encoder.
double largest_gain(const BatchPart& part, const TrainState& state) {
  const CodePath path = path_of(part.of, state.dictionary, state.own);
  return path.gain_l.defined() ? largest_magnitude(path.gain_l) : 1;
}

}  // namespace

ExactBDec bound_b_dec(const Mesh& mesh, const TrainState& state,
                      const std::vector<at::Tensor>& g_own, std::span<const BatchPart> parts,
                      double aux_factor, const Preact& preact, int64_t batch_rows) {
  const Dictionary& dictionary = state.dictionary;
  double g_element = 0, g_row = 0, l1 = 0;
  for (const at::Tensor& g : g_own) g_element = std::max(g_element, largest_magnitude(g));
  for (const BatchPart& part : parts) {
    const double of_codes = longest_row(part.g_bd) * largest_gain(part, state);
    g_row = std::max(g_row, of_codes + (part.aux ? aux_factor * longest_row(part.aux->g_bd) : 0));
    l1 = std::max(l1, part.l1);
  }
  const double w_row = dictionary.tied() ? longest_row(dictionary.w_dec_ld) : 1.01;  // else unit
  Lists lists = measure(parts);
  // Its slopes are those of as many more entries as there are codes, and of one for each row and
  // dead latent.
  int64_t more = 0;
  if (preact.active()) {
    more = batch_rows;
    l1 += preact.weight;
    lists.longest[0] *= 2;
    lists.entries *= 2;
    lists.entries +=
        more * preact.dead_l.narrow(0, state.own.begin, state.own.size()).sum().item<int64_t>();
  }
  // Each of the two lengths apart: their longest lists may be on different ranks.
  double largest[6] = {g_element,
                       g_row,
                       w_row,
                       largest_magnitude(dictionary.w_enc_ld),
                       static_cast<double>(lists.longest[0]),
                       static_cast<double>(lists.longest[1])};
  mesh.world->all_reduce(view_of(largest, 6), ReduceOp::max, "largest gradient");
  mesh.world->all_reduce(view_of(&lists.entries, 1), ReduceOp::sum, "codes of the batch");
  // An entry's share: slope times its latent's encoder row.
  const double share = (largest[1] + l1) * largest[2] * largest[3],
               longest = largest[4] + largest[5] + static_cast<double>(more);
  if (!std::isfinite(largest[0]) || !std::isfinite(share * longest)) return {{}, {}, false};
  return {fixed_point(largest[0], batch_rows),
          fixed_point_within(share * longest, share * static_cast<double>(lists.entries)), true};
}

at::Tensor sum_b_dec(const Mesh& mesh, const ExactBDec& exact, const std::vector<at::Tensor>& g_own,
                     const at::Tensor& of_latents_d) {
  at::Tensor sums = at::zeros({2, of_latents_d.size(0)}, of_latents_d.options());
  for (const at::Tensor& g : g_own)
    sums[0] += (g.to(at::kDouble) * exact.of_tokens.up).round_().to(at::kLong).sum(0);
  sums[1] = of_latents_d;
  mesh.world->all_reduce(view_of(sums), ReduceOp::sum, "b_dec gradient");
  const at::Tensor total = sums[0].to(at::kDouble) * exact.of_tokens.down +
                           sums[1].to(at::kDouble) * exact.of_latents.down;
  return mesh.world->rank() == 0 ? total : at::zeros_like(total);
}

}  // namespace megadict
