#include "eval/evaluate.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <numeric>

#include "comm/agree.h"
#include "data/batch_stream.h"
#include "model/forward.h"
#include "model/tensor_views.h"

namespace megadict {

namespace {

at::Tensor undo(const at::Tensor& x_bd, const Normalization& normalization) {
  at::Tensor raw = (x_bd / normalization.scale).to(at::kCPU);
  if (!normalization.mean.empty()) raw = raw + at::tensor(normalization.mean);
  return raw.contiguous();
}

// Active latents and sum z |w_dec| of the owned rows, over all shards: [slot, 2] fp64.
at::Tensor row_counts(const Mesh& mesh, const Dictionary& dictionary, const Codes& codes,
                      int64_t slot) {
  const at::Tensor counts = codes.row_start.diff();
  const at::Tensor norm = dictionary.w_dec_ld.norm(2, 1).to(at::kDouble);
  at::Tensor both = at::zeros({codes.rows, 2}, norm.options());
  both.select(1, 0).copy_(counts);
  if (codes.nnz() > 0)
    both.select(1, 1).index_add_(0, at::repeat_interleave(counts),
                                 codes.value.to(at::kDouble) * norm.index_select(0, codes.latent));
  return sum_at_owners(mesh, both, slot, "row counts");
}

void add_batch(const Mesh& mesh, const Dictionary& dictionary, const Normalization& normalization,
               const MicroBatch& micro, at::Tensor& fired_l, MetricSums& sums) {
  const Rows rows =
      gather_rows(mesh, micro, dictionary.d, normalization, dictionary.w_enc_ld.device());
  const Forward fwd = forward(mesh, dictionary, rows);
  const int64_t owned = static_cast<int64_t>(micro.row_ids.size()), slot = micro.part.slot;
  const at::Tensor x_norm = owned_slot(mesh, rows.x_bd, slot);
  const at::Tensor x_hat = undo(x_norm + fwd.residual_sd, normalization);
  const at::Tensor counts = row_counts(mesh, dictionary, fwd.codes, slot).to(at::kCPU);
  std::vector<int64_t> l0(static_cast<size_t>(owned));
  std::vector<double> l1(static_cast<size_t>(owned));
  const auto values = counts.accessor<double, 2>();
  for (int64_t i = 0; i < owned; ++i) {
    l0[static_cast<size_t>(i)] = static_cast<int64_t>(values[i][0]);
    l1[static_cast<size_t>(i)] = values[i][1] / normalization.scale;
  }
  // x as it was stored, not as it came back from normalising.
  sums.add_rows(reinterpret_cast<const float*>(micro.data.data()), x_hat.const_data_ptr<float>(),
                owned, l0.data(), l1.data());
  if (fwd.codes.nnz() > 0)
    fired_l += at::bincount(fwd.codes.latent.to(at::kLong), {}, dictionary.latents.size());
}

std::vector<double> decoder_norms(const Dictionary& dictionary) {
  const at::Tensor norm = norms_of_rows(dictionary.w_dec_ld).to(at::kCPU).contiguous();
  return {norm.const_data_ptr<double>(), norm.const_data_ptr<double>() + norm.numel()};
}

}  // namespace

MicroBatch read_owned(const Mesh& mesh, const ShardIndex& data, std::span<const int64_t> rows) {
  MicroBatch micro;
  micro.rows = micro.batch_rows = static_cast<int64_t>(rows.size());
  micro.part = row_part(micro.rows, mesh.data_size(), mesh.feature_size(), mesh.data_index,
                        mesh.feature_index);
  const RowPart& part = micro.part;
  const int64_t owned = std::max<int64_t>(part.owned.size(), 0);
  if (owned > 0) {
    const auto mine = rows.subspan(static_cast<size_t>(part.row_range.begin + part.owned.begin),
                                   static_cast<size_t>(owned));
    micro.row_ids.assign(mine.begin(), mine.end());
  }
  micro.dtype = DType::f32;
  micro.data = Bytes(static_cast<size_t>(part.slot * data.width()) * sizeof(float));
  read_rows(data, micro.row_ids, reinterpret_cast<float*>(micro.data.data()));
  return micro;
}

MetricReport evaluate(const Mesh& mesh, const Dictionary& dictionary,
                      const Normalization& normalization, const ShardIndex& data,
                      const EvaluateArgs& args) {
  const c10::NoGradGuard no_grad;
  const int64_t total = args.rows > 0 ? std::min(args.rows, data.rows()) : data.rows();
  // The same shift on every rank: the mean of the first rows.
  const int64_t head = std::min<int64_t>(total, 1024);
  std::vector<int64_t> ids(static_cast<size_t>(head));
  std::iota(ids.begin(), ids.end(), 0);
  std::vector<float> first(static_cast<size_t>(head * data.width()));
  agree(*mesh.world, [&] { read_rows(data, ids, first.data()); });
  MetricSums sums(dictionary.d, dictionary.n, dictionary.latents,
                  mean_row(first.data(), head, data.width()));
  at::Tensor fired_l =
      at::zeros({dictionary.latents.size()}, dictionary.b_enc_l.options().dtype(at::kLong));
  for (int64_t begin = 0; begin < total; begin += args.batch_rows) {
    ids.resize(static_cast<size_t>(std::min(args.batch_rows, total - begin)));
    std::iota(ids.begin(), ids.end(), begin);
    MicroBatch micro;
    agree(*mesh.world, [&] { micro = read_owned(mesh, data, ids); });
    add_batch(mesh, dictionary, normalization, micro, fired_l, sums);
  }
  const at::Tensor fired = fired_l.to(at::kCPU).contiguous();
  sums.add_fired({fired.const_data_ptr<int64_t>(), static_cast<size_t>(fired.numel())});
  sums.set_decoder_norms(decoder_norms(dictionary));
  return finish(reduce_metrics(sums, *mesh.world, *mesh.data, *mesh.feature));
}

std::vector<float> gather_decoder(const Mesh& mesh, const Dictionary& dictionary) {
  const int64_t shards = mesh.feature_size();
  const int64_t widest = shard_of(dictionary.n, shards, 0).size();
  at::Tensor mine = at::zeros({widest, dictionary.d}, dictionary.w_dec_ld.options());
  mine.narrow(0, 0, dictionary.latents.size()).copy_(dictionary.w_dec_ld);
  at::Tensor all = at::empty({shards, widest, dictionary.d}, mine.options());
  const at::Tensor& send = mine;
  mesh.feature->all_gather(view_of(send), view_of(all), "decoder rows");
  std::vector<at::Tensor> parts;
  for (int64_t f = 0; f < shards; ++f)
    parts.push_back(all[f].narrow(0, 0, shard_of(dictionary.n, shards, f).size()));
  const at::Tensor rows = at::cat(parts).to(at::kCPU).contiguous();
  return {rows.const_data_ptr<float>(), rows.const_data_ptr<float>() + rows.numel()};
}

}  // namespace megadict
