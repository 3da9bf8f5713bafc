#include "eval/evaluate.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <iterator>
#include <numeric>
#include <optional>

#include "base/progress.h"
#include "base/stop_request.h"
#include "comm/agree.h"
#include "data/batch_stream.h"
#include "model/forward.h"
#include "model/tensor_views.h"

namespace megadict {

namespace {

// Raw rows from what the decoder gives, computed in fp64.
at::Tensor raw_rows(const at::Tensor& decoded_sd, const at::Tensor& b_dec_d,
                    const Normalization& normalization) {
  at::Tensor raw = (decoded_sd.to(at::kDouble) + b_dec_d.to(at::kDouble)) / normalization.scale;
  raw = raw.to(at::kCPU);
  if (!normalization.mean.empty()) raw = raw + at::tensor(normalization.mean).to(at::kDouble);
  return raw.to(at::kFloat).contiguous();
}

// Active latents, sum z |w_dec| and sum z of the owned rows, over all shards: [slot, 3] fp64.
at::Tensor row_counts(const Mesh& mesh, const at::Tensor& norm_l, const Codes& codes,
                      int64_t slot) {
  const at::Tensor counts = codes.row_start.diff();
  at::Tensor all = at::zeros({codes.rows, 3}, norm_l.options());
  all.select(1, 0).copy_(counts);
  if (codes.nnz() > 0) {
    const at::Tensor row = at::repeat_interleave(counts), value = codes.value.to(at::kDouble);
    all.select(1, 1).index_add_(0, row, value * norm_l.index_select(0, codes.latent));
    all.select(1, 2).index_add_(0, row, value);
  }
  return sum_at_owners(mesh, all, slot, "row counts");
}

// One dictionary's share of a pass over a data set.
struct Pass {
  const Mesh& mesh;
  const Dictionary& dictionary;
  const Normalization& normalization;
  at::Tensor norm_l;  // fp64, of the decoder's rows
  MetricSums sums;
  at::Tensor fired_l;
  std::optional<Bootstrap> bootstrap;
  LatentStatistics* latents;
};

Pass make_pass(const Mesh& mesh, const Judged& judged, const ShardIndex& data,
               const std::vector<float>& shift_d, const BootstrapOptions& resampling) {
  const Dictionary& dictionary = judged.dictionary;
  Pass pass{.mesh = mesh,
            .dictionary = dictionary,
            .normalization = judged.normalization,
            .norm_l = norms_of_rows(dictionary.w_dec_ld),
            .sums = MetricSums(dictionary.d, dictionary.n, dictionary.latents, shift_d),
            .fired_l = at::zeros({dictionary.latents.size()},
                                 dictionary.b_enc_l.options().dtype(at::kLong)),
            .bootstrap = std::nullopt,
            .latents = judged.latents};
  if (resampling.resamples > 0)
    pass.bootstrap.emplace(resampling, data, data.width(), pass.sums.shift());
  return pass;
}

// Rows first_row, ... of the data set; `raw_bd` are the data row's, as stored.
void add_batch(Pass& pass, int64_t first_row, const MicroBatch& micro, const at::Tensor& raw_bd) {
  const Mesh& mesh = pass.mesh;
  const Dictionary& dictionary = pass.dictionary;
  const Rows rows = finish_rows(mesh, micro, raw_bd, pass.normalization);
  const Codes codes = encode_rows(mesh, dictionary, rows, {}).codes;
  const int64_t owned = static_cast<int64_t>(micro.row_ids.size()), slot = micro.part.slot;
  const at::Tensor decoded = decode_at_owners(mesh, codes, dictionary.w_dec_ld, dictionary.n, slot,
                                              Sums::exact, "reconstruction");
  const at::Tensor x_hat =
      raw_rows(after_decoder(dictionary, decoded), dictionary.b_dec_d, pass.normalization);
  const at::Tensor counts = row_counts(mesh, pass.norm_l, codes, slot).to(at::kCPU);
  std::vector<int64_t> l0(static_cast<size_t>(owned));
  std::vector<double> l1(l0.size()), plain(l0.size());
  const auto values = counts.accessor<double, 2>();
  for (int64_t i = 0; i < owned; ++i) {
    l0[static_cast<size_t>(i)] = static_cast<int64_t>(values[i][0]);
    l1[static_cast<size_t>(i)] = values[i][1] / pass.normalization.scale;
    plain[static_cast<size_t>(i)] = values[i][2] / pass.normalization.scale;
  }
  // x as it was stored, not as it came back from normalising.
  const auto* x = reinterpret_cast<const float*>(micro.data.data());
  const float* x_hat_bd = x_hat.const_data_ptr<float>();
  pass.sums.add_rows(x, x_hat_bd, owned, l0.data(), l1.data(), plain.data());
  if (pass.bootstrap && owned > 0)
    pass.bootstrap->add_rows(micro.row_ids.front(), owned, x, x_hat_bd, l0.data(), l1.data(),
                             plain.data());
  if (pass.latents != nullptr)
    pass.latents->add(codes, first_row + micro.part.row_range.begin, rows.real_rows());
  if (codes.nnz() > 0)
    pass.fired_l += at::bincount(codes.latent.to(at::kLong), {}, dictionary.latents.size());
}

MetricReport report_of(Pass& pass) {
  const at::Tensor fired = pass.fired_l.to(at::kCPU).contiguous();
  pass.sums.add_fired({fired.const_data_ptr<int64_t>(), static_cast<size_t>(fired.numel())});
  const at::Tensor norm = pass.norm_l.to(at::kCPU).contiguous();
  pass.sums.set_decoder_norms({norm.const_data_ptr<double>(), static_cast<size_t>(norm.numel())});
  const Mesh& mesh = pass.mesh;
  const MetricTotals totals = reduce_metrics(pass.sums, *mesh.world, *mesh.data, *mesh.feature);
  MetricReport report = finish(totals);
  if (pass.bootstrap) report.intervals = pass.bootstrap->intervals(*mesh.world, totals);
  return report;
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
  agree(*mesh.world,
        [&] { read_rows(data, micro.row_ids, reinterpret_cast<float*>(micro.data.data())); });
  return micro;
}

MetricReport evaluate(const Mesh& mesh, const Dictionary& dictionary,
                      const Normalization& normalization, const ShardIndex& data,
                      const EvaluateArgs& args) {
  const Judged judged{dictionary, normalization, args.latents};
  return evaluate_all(mesh, {&judged, 1}, data, args).front();
}

std::vector<MetricReport> evaluate_all(const Mesh& mesh, std::span<const Judged> judged,
                                       const ShardIndex& data, const EvaluateArgs& args) {
  const c10::NoGradGuard no_grad;
  const int64_t total = args.rows > 0 ? std::min(args.rows, data.rows()) : data.rows();
  // The same shift on every rank: the mean of the first rows.
  const int64_t head = std::min<int64_t>(total, 1024);
  std::vector<int64_t> ids(static_cast<size_t>(head));
  std::iota(ids.begin(), ids.end(), 0);
  std::vector<float> first(static_cast<size_t>(head * data.width()));
  agree(*mesh.world, [&] { read_rows(data, ids, first.data()); });
  const std::vector<float> shift_d = mean_row(first.data(), head, data.width());
  std::vector<Pass> passes;
  for (const Judged& one : judged)
    passes.push_back(make_pass(mesh, one, data, shift_d, args.bootstrap));
  const at::Device device = judged.front().dictionary.w_enc_ld.device();
  Progress shown("eval", total, "rows");
  for (int64_t peer = 0; peer < total; peer += args.peer_batch_rows) {
    const int64_t end = std::min(total, peer + args.peer_batch_rows);
    for (int64_t begin = peer; begin < end; begin += args.batch_rows) {
      if (args.heeds_stop && agreed_stop(*mesh.world) != StopRequest::none) return {};
      ids.resize(static_cast<size_t>(std::min(args.batch_rows, end - begin)));
      std::iota(ids.begin(), ids.end(), begin);
      const MicroBatch micro = read_owned(mesh, data, ids);
      const at::Tensor raw_bd = start_gather_rows(mesh, micro, data.width(), device).wait();
      for (Pass& pass : passes) add_batch(pass, begin, micro, raw_bd);
      shown.at(begin + std::ssize(ids));
    }
    for (Pass& pass : passes) end_batch(pass.sums, *mesh.world);
  }
  std::vector<MetricReport> reports;
  for (Pass& pass : passes) reports.push_back(report_of(pass));
  return reports;
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
