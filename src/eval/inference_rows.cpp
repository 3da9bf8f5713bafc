#include "eval/inference_rows.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "base/clock.h"
#include "eval/evaluate.h"
#include "eval/pursuit_rows.h"
#include "model/exact_sums.h"
#include "model/forward.h"
#include "model/tensor_views.h"

namespace megadict {

namespace {

// One shard after the other into its place, so that no second copy is needed. Collective over
// feature.
at::Tensor all_decoder_rows(const Mesh& mesh, const Dictionary& dictionary) {
  at::Tensor all = at::empty({dictionary.n, dictionary.d}, dictionary.w_dec_ld.options());
  for (int f = 0; f < mesh.feature_size(); ++f) {
    const Range rows = shard_of(dictionary.n, mesh.feature_size(), f);
    at::Tensor part = all.narrow(0, rows.begin, rows.size());
    if (f == mesh.feature_index) part.copy_(dictionary.w_dec_ld);
    mesh.feature->broadcast(view_of(part), f, "decoder rows");
  }
  return all.to(at::kCPU);
}

// Of a data row's rows this rank's latents, to the owned rows' all latents. Collective over
// feature.
class ToOwners {
 public:
  ToOwners(const Mesh& mesh, const Codes& codes, Range latents, int64_t slot)
      : parts_(static_cast<size_t>(mesh.feature_size())), slot_(slot) {
    const at::Tensor counts = codes.row_start.diff().cpu().contiguous();
    counts_ = at::empty({mesh.feature_size() * slot}, at::kLong);
    mesh.feature->all_to_all(view_of(counts), view_of(counts_), "code counts");
    const std::vector<int64_t> send = block_sums(counts);
    receive_ = block_sums(counts_);
    const int64_t entries = std::accumulate(receive_.begin(), receive_.end(), int64_t{0});
    latent_ = at::empty({entries}, at::kInt);
    value_ = at::empty({entries}, at::kFloat);
    const at::Tensor latent = (codes.latent.cpu() + latents.begin).to(at::kInt).contiguous();
    const at::Tensor value = codes.value.cpu().contiguous();
    mesh.feature->all_to_all_v(view_of(latent), send, view_of(latent_), receive_, "code latents");
    mesh.feature->all_to_all_v(view_of(value), send, view_of(value_), receive_, "code values");
  }

  // The first `owned` rows, in units of atoms of length 1.
  void append(int64_t owned, const float* length_n, std::vector<RowCode>& rows) const {
    const auto* count = counts_.const_data_ptr<int64_t>();
    const auto* latent = latent_.const_data_ptr<int32_t>();
    const auto* value = value_.const_data_ptr<float>();
    const size_t first = rows.size();
    rows.resize(first + static_cast<size_t>(owned));
    for (size_t f = 0; f < parts_; ++f)
      for (int64_t t = 0; t < slot_; ++t)
        for (int64_t left = *count++; left > 0; --left, ++latent, ++value) {
          if (t >= owned) continue;  // padding
          RowCode& row = rows[first + static_cast<size_t>(t)];
          row.atom.push_back(*latent);
          row.value.push_back(static_cast<double>(*value) * length_n[*latent]);
        }
  }

 private:
  size_t parts_;
  int64_t slot_;
  at::Tensor counts_, latent_, value_;
  std::vector<int64_t> receive_;

  std::vector<int64_t> block_sums(const at::Tensor& counts) const {
    const at::Tensor sums = counts.view({-1, slot_}).sum(1);
    return {sums.const_data_ptr<int64_t>(), sums.const_data_ptr<int64_t>() + sums.numel()};
  }
};

}  // namespace

Codes InferenceRows::encoder_codes(Range rows) const {
  Codes out{rows.size(), encoder.latents, {}, {}, {}};
  const auto* start = encoder.row_start.const_data_ptr<int64_t>();
  const int64_t first = start[rows.begin], count = start[rows.end] - first;
  out.row_start = encoder.row_start.narrow(0, rows.begin, rows.size() + 1) - first;
  out.latent = encoder.latent.narrow(0, first, count);
  out.value = encoder.value.narrow(0, first, count);
  return out;
}

InferenceRows inference_rows(const Mesh& mesh, const Dictionary& dictionary,
                             const Normalization& normalization, const ShardIndex& data,
                             int64_t total, int64_t batch_rows) {
  InferenceRows out;
  out.total = total;
  out.atoms_nd = all_decoder_rows(mesh, dictionary);
  const at::Tensor length = norms_of_rows(out.atoms_nd).to(at::kFloat);
  out.atoms_nd.div_(length.clamp_min(std::numeric_limits<float>::min()).unsqueeze(1));
  std::vector<at::Tensor> x = {at::empty({0, dictionary.d}, at::kFloat)};
  std::vector<RowCode> codes;
  for (int64_t begin = 0; begin < total; begin += batch_rows) {
    std::vector<int64_t> ids(static_cast<size_t>(std::min(batch_rows, total - begin)));
    std::iota(ids.begin(), ids.end(), begin);
    const MicroBatch micro = read_owned(mesh, data, ids);
    const Rows rows =
        gather_rows(mesh, micro, dictionary.d, normalization, dictionary.w_enc_ld.device());
    Forward fwd = encode_rows(mesh, dictionary, rows, {});
    out.encode_seconds += fwd.encode_s;
    const auto owned = static_cast<int64_t>(micro.row_ids.size());
    const int64_t slot = rows.part.slot;
    x.push_back(fwd.target_sd.narrow(0, 0, owned).to(at::kCPU));
    ToOwners(mesh, fwd.codes, dictionary.latents, slot)
        .append(owned, length.const_data_ptr<float>(), codes);
  }
  out.x_bd = at::cat(x).contiguous();
  out.encoder = codes_of(codes, dictionary.n);
  out.encode_seconds = largest_of_all(mesh, out.encode_seconds, "inference seconds");
  return out;
}

}  // namespace megadict
