#include "model/auxk.h"

#include <ATen/ATen.h>

#include <array>
#include <numeric>

#include "base/philox.h"
#include "model/tensor_views.h"
#include "model/topk.h"

namespace megadict {

namespace {

// Keeps the dead latents of one stratum; needs the counts of all shards, and leaves its own.
void keep_stratum(const Mesh& mesh, const Stratum& stratum, AuxK& aux) {
  if (stratum.most == 0 || aux.n_dead <= stratum.most) return;
  const int64_t every = ceil_div(aux.n_dead, stratum.most);
  const Rng rng{stratum.seed, Purpose::auxk_stratum, static_cast<uint64_t>(stratum.step)};
  const auto start = static_cast<int64_t>(rng.bits64(0) % static_cast<uint64_t>(every));
  int64_t before = 0;  // dead latents of the shards before
  for (size_t shard = 0; shard < aux.dead_of_shard.size(); ++shard) {
    const int64_t dead = aux.dead_of_shard[shard];
    const int64_t first = std::min((start + every - before % every) % every, dead);
    if (static_cast<int>(shard) == mesh.feature_index)
      aux.dead_l = aux.dead_l.slice(0, first, dead, every).contiguous();
    before += dead;
    aux.dead_of_shard[shard] = ceil_div(dead - first, every);
  }
}

}  // namespace

AuxK make_auxk(const Mesh& mesh, const at::Tensor& dead_mask_l, int64_t k_aux, Sums sums,
               const Stratum& stratum) {
  AuxK aux;
  aux.sums = sums;
  aux.dead_l = dead_mask_l.nonzero().squeeze(1);
  const int64_t mine = aux.dead_l.size(0);
  aux.dead_of_shard.assign(static_cast<size_t>(mesh.feature_size()), 0);
  mesh.feature->all_gather(view_of(&mine, 1),
                           view_of(aux.dead_of_shard.data(), mesh.feature_size()), "dead counts");
  aux.n_dead = std::accumulate(aux.dead_of_shard.begin(), aux.dead_of_shard.end(), int64_t{0});
  keep_stratum(mesh, stratum, aux);
  aux.k = std::min(k_aux,
                   std::accumulate(aux.dead_of_shard.begin(), aux.dead_of_shard.end(), int64_t{0}));
  return aux;
}

AuxForward auxk_forward(const Mesh& mesh, const Dictionary& dictionary, const Rows& rows,
                        const Forward& fwd, AuxK& aux) {
  const KernelSet& kernels = kernels_for(fwd.xc_bd);
  const at::Tensor w_enc = dictionary.w_enc_ld.index_select(0, aux.dead_l);
  const at::Tensor w_dec =
      dictionary.tied() ? w_enc : dictionary.w_dec_ld.index_select(0, aux.dead_l);
  const at::Tensor b_enc = dictionary.b_enc_l.index_select(0, aux.dead_l);

  const Candidates candidates = kernels.topk({fwd.xc_bd, w_enc, b_enc}, aux.k);
  const Codes codes = select_topk(*mesh.feature, candidates,
                                  {aux.k, rows.part.slot, rows.real_rows(), 0, aux.dead_of_shard});
  const at::Tensor e_hat = decode_at_owners(mesh, codes, w_dec, dictionary.n, rows.part.slot,
                                            aux.sums, "auxk reconstruction");
  // e = x - x_hat = -residual; padding rows have residual and e_hat zero.
  const at::Tensor difference = e_hat + fwd.residual_sd;
  if (aux.sums == Sums::exact) {
    aux.squares.push_back(at::stack({row_squares(difference), row_squares(fwd.residual_sd)}, 1));
  } else {
    aux.error += sum_of_squares(difference);
    aux.target += sum_of_squares(fwd.residual_sd);
  }
  return {kernels.by_latent(codes),
          gather_from_owners(mesh, difference * 2, "auxk residual gradient")};
}

void add_auxk_gradients(const Dictionary& dictionary, const at::Tensor& xc_bd,
                        const AuxForward& mine, AuxK& aux) {
  RowGradients& rows = aux.rows;
  if (!rows.w_enc_ld.defined()) {
    const auto options = dictionary.w_enc_ld.options();
    const int64_t dead = aux.dead_l.size(0);
    rows.w_enc_ld = at::zeros({dead, dictionary.w_enc_ld.size(1)}, options);
    rows.w_dec_ld = dictionary.tied() ? rows.w_enc_ld : at::zeros({dead, dictionary.d}, options);
    rows.b_enc_l = at::zeros({dead}, options);
    rows.input_l = at::zeros({dead}, options);
  }
  const at::Tensor w_dec = dictionary.w_dec_ld.index_select(0, aux.dead_l);
  kernels_for(w_dec).row_gradients({mine.codes, xc_bd, mine.g_bd, w_dec, 0}, rows);
}

void merge_auxk(const AuxK& aux, double factor, Gradients& gradients) {
  gradients.rows.w_enc_ld.index_add_(0, aux.dead_l, aux.rows.w_enc_ld, factor);
  if (!aux.rows.w_dec_ld.is_same(aux.rows.w_enc_ld))
    gradients.rows.w_dec_ld.index_add_(0, aux.dead_l, aux.rows.w_dec_ld, factor);
  gradients.rows.b_enc_l.index_add_(0, aux.dead_l, aux.rows.b_enc_l, factor);
  gradients.rows.input_l.index_add_(0, aux.dead_l, aux.rows.input_l, factor);
}

std::array<double, 2> auxk_sums(const Mesh& mesh, const AuxK& aux, int64_t batch_rows) {
  std::array<double, 2> sums = {aux.error, aux.target};
  if (aux.sums == Sums::exact) {
    const at::Tensor exact = exact_sum(mesh, at::cat(aux.squares), batch_rows, "auxk sums");
    return {exact[0].item<double>(), exact[1].item<double>()};
  }
  mesh.world->all_reduce(view_of(sums.data(), 2), ReduceOp::sum, "auxk sums");
  return sums;
}

}  // namespace megadict
