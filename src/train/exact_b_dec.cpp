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

}  // namespace

ExactBDec bound_b_dec(const Mesh& mesh, const TrainState& state,
                      const std::vector<at::Tensor>& g_own, std::span<const BatchPart> parts,
                      double aux_factor, int64_t batch_rows) {
  const Dictionary& dictionary = state.dictionary;
  double g_element = 0, g_row = 0, l1 = 0;
  for (const at::Tensor& g : g_own) g_element = std::max(g_element, largest_magnitude(g));
  for (const BatchPart& part : parts) {
    g_row = std::max(
        g_row, longest_row(part.g_bd) + (part.aux ? aux_factor * longest_row(part.aux->g_bd) : 0));
    l1 = part.l1;
  }
  const double w_row = dictionary.tied() ? longest_row(dictionary.w_dec_ld) : 1.01;  // else unit
  double largest[4] = {g_element, g_row, w_row, largest_magnitude(dictionary.w_enc_ld)};
  mesh.world->all_reduce(view_of(largest, 4), ReduceOp::max, "largest gradient");
  // A latent's share: over at most all rows, slope times its encoder row.
  const double slope = (largest[1] + l1) * largest[2];
  const double share = static_cast<double>(batch_rows) * slope * largest[3];
  if (!std::isfinite(largest[0]) || !std::isfinite(share)) return {{}, {}, false};
  return {fixed_point(largest[0], batch_rows), fixed_point(share, dictionary.n), true};
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
