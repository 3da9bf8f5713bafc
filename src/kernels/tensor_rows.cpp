// Decoding, the latent-major pass and the optimiser by tensor operations. Sums over entries are
// sums over lists of picked rows, which no device expands; latents come in chunks, so that
// gradients and what the optimiser needs beside them exist for a chunk at a time.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/screen.h"
#include "kernels/tensor_kernels.h"

namespace megadict {

namespace {

constexpr int64_t kEntryBytes = 64;  // of indices and factors, for an entry of a chunk

// List i, entries [start[i], start[i + 1]): the sum of factor * row `index` of `table`. Adds in the
// order of the entries.
at::Tensor sum_lists(const at::Tensor& table, const at::Tensor& index, const at::Tensor& start,
                     const at::Tensor& factor) {
  const int64_t lists = start.size(0) - 1;
  if (lists == 0 || index.size(0) == 0) return at::zeros({lists, table.size(1)}, table.options());
  return std::get<0>(at::_embedding_bag_forward_only(
      table, index, start, /*scale_grad_by_freq=*/false, /*mode: sum*/ 0, /*sparse=*/false, factor,
      /*include_last_offset=*/true));
}

// The sums of the entries of each list, in fp64.
at::Tensor sum_lists(const at::Tensor& value, const at::Tensor& start) {
  const at::Tensor each = at::arange(value.size(0), start.options());
  return std::get<0>(at::_embedding_bag_forward_only(value.to(at::kDouble).unsqueeze(1), each,
                                                     start, false, 0, false, {}, true))
      .squeeze(1);
}

// <row `index` of a, row `list` of b> for each entry.
at::Tensor products(const at::Tensor& a, const at::Tensor& b, const at::Tensor& index,
                    const at::Tensor& start, const at::Tensor& list) {
  return at::_embedding_bag_per_sample_weights_backward(b, a, index, start, list, /*mode: sum*/ 0);
}

at::Tensor rows_of(const Codes& codes) {
  return at::repeat_interleave(codes.row_start.diff());  // i64 [nnz]
}

// ---- chunks of latents -------------------------------------------------------------------------

// Some latents: those in `latent`, ascending, or, where that is undefined, [first, first + count).
struct Chunk {
  int64_t first, count;
  at::Tensor latent;

  at::Tensor of(const at::Tensor& rows) const {
    return latent.defined() ? rows.index_select(0, latent) : rows.narrow(0, first, count);
  }
  void put(at::Tensor& rows, const at::Tensor& values) const {
    if (latent.defined())
      rows.index_copy_(0, latent, values);
    else
      rows.narrow(0, first, count).copy_(values);
  }
  void add(at::Tensor& rows, const at::Tensor& values) const { put(rows, of(rows) + values); }
};

int64_t rows_of_chunk(int64_t d, int64_t work_bytes) {
  return std::max<int64_t>(1, work_bytes / (kTensorRowBytes * d));
}

// A source whose codes have a list for every latent of the shard.
struct Lists {
  const GradientSource& of;
  at::Tensor start;  // i64 [l + 1]
  at::Tensor host;   // the same on the CPU

  Lists(const GradientSource& source, int64_t latents) : of(source), start(of.codes.latent_start) {
    if (of.latent_c.defined()) {
      // List c belongs to a later latent than list c - 1: entries stay where they are.
      const at::Tensor all = at::arange(latents + 1, start.options());
      start = start.index_select(0, at::searchsorted(of.latent_c, all));
    }
    host = start.to(at::kCPU);
  }
  const int64_t* starts() const { return host.const_data_ptr<int64_t>(); }
};

// Calls work(chunk) on the latents that have an entry in some source, or on all of them: at most
// `most_rows` a chunk, and entries that need `work_bytes` (one latent's are never split).
template <class Work>
void for_chunks(const std::vector<Lists>& sources, int64_t latents, bool all, int64_t most_rows,
                int64_t work_bytes, Work&& work) {
  const int64_t most_entries = std::max<int64_t>(1, work_bytes / kEntryBytes);
  const auto options = at::TensorOptions(at::kLong);
  std::vector<int64_t> picked;
  int64_t first = 0, entries = 0;
  const auto flush = [&](int64_t next) {
    const auto count = all ? next - first : static_cast<int64_t>(picked.size());
    if (count > 0)
      work(Chunk{first, count,
                 all ? at::Tensor() : at::tensor(picked, options).to(sources[0].start.device())});
    picked.clear();
    first = next;
    entries = 0;
  };
  for (int64_t j = 0; j < latents; ++j) {
    int64_t its = 0;
    for (const Lists& source : sources) its += source.starts()[j + 1] - source.starts()[j];
    if (its == 0 && !all) continue;
    const auto count = all ? j - first : static_cast<int64_t>(picked.size());
    if (count == most_rows || (count > 0 && entries + its > most_entries)) flush(j);
    if (!all) picked.push_back(j);
    entries += its;
  }
  flush(latents);
}

// Adds one source's gradients of a chunk's latents, whose decoder rows are `w`. A list of a latent
// between two of the chunk is empty.
void add_gradients(const Lists& source, const Chunk& chunk, const at::Tensor& w,
                   RowGradients& out) {
  const GradientSource& of = source.of;
  const at::Tensor last =
      chunk.latent.defined() ? chunk.latent.narrow(0, chunk.count - 1, 1) + 1 : at::Tensor();
  at::Tensor start = last.defined()
                         ? at::cat({chunk.of(source.start), source.start.index_select(0, last)})
                         : source.start.narrow(0, chunk.first, chunk.count + 1);
  const int64_t begin = start[0].item<int64_t>();
  const int64_t count = start[chunk.count].item<int64_t>() - begin;
  if (count == 0) return;
  start = start - begin;
  const at::Tensor index = of.codes.row.narrow(0, begin, count).to(at::kLong);
  const at::Tensor z = of.codes.value.narrow(0, begin, count);
  const at::Tensor list = at::repeat_interleave(start.diff());
  at::Tensor dz = of.g_bd.defined() ? products(of.g_bd, w, index, start, list)
                                    : at::zeros({count}, of.x_bd.options());
  if (of.factor != 1) dz.mul_(of.factor);
  if (of.l1 != 0) {
    const at::Tensor norm = w.norm(2, 1);
    dz.add_(norm.index_select(0, list), of.l1);
    const at::Tensor z_sum = sum_lists(z, start).to(at::kFloat);
    if (of.path.decoder)
      out.w_dec_ld.addcmul_(w, (z_sum / norm.clamp_min(1e-30)).unsqueeze(1), of.l1);
  }
  if (of.path.decoder)
    out.w_dec_ld.add_(sum_lists(of.g_bd, index, start, of.factor == 1 ? z : z * of.factor));
  if (of.path.bias) out.b_enc_l.add_(sum_lists(dz, start).to(at::kFloat));
  if (of.path.gain_l.defined()) dz.mul_(chunk.of(of.path.gain_l).index_select(0, list));
  out.w_enc_ld.add_(sum_lists(of.x_bd, index, start, dz));
  out.input_l.add_(sum_lists(dz, start).to(at::kFloat));
}

RowGradients zero_gradients(const Chunk& chunk, const at::Tensor& enc, const at::Tensor& dec,
                            bool tied) {
  RowGradients out;
  out.w_enc_ld = at::zeros({chunk.count, enc.size(1)}, enc.options());
  out.w_dec_ld = tied ? out.w_enc_ld : at::zeros({chunk.count, dec.size(1)}, enc.options());
  out.b_enc_l = at::zeros({chunk.count}, enc.options());
  out.input_l = at::zeros_like(out.b_enc_l);
  return out;
}

// ---- the optimiser -----------------------------------------------------------------------------

// What is subtracted from w, and the moments after the step.
at::Tensor step_of(const at::Tensor& g, const at::Tensor& decay, const UpdateArgs& args,
                   at::Tensor& m, at::Tensor& v) {
  const auto t = static_cast<double>(args.step);
  if (args.kind == OptimiserKind::sign_sgd) return g.sign().mul_(args.lr);
  v = (v * decay).addcmul_(g, g, 1 - args.beta2);
  const at::Tensor root = (v / (1 - std::pow(args.beta2, t))).sqrt_().add_(args.eps);
  if (args.kind == OptimiserKind::adam_b1_0) return (g / root).mul_(args.lr);
  m = (m * args.beta1).add_(g, 1 - args.beta1);
  return (m / root).mul_(args.lr / (1 - std::pow(args.beta1, t)));
}

// One step on the rows of a chunk of which `keep` is set. `skipped`: undefined where every row had
// a gradient in the last step.
void update_chunk(Parameter& parameter, const Chunk& chunk, at::Tensor g, const at::Tensor& keep,
                  const at::Tensor& skipped, const UpdateArgs& args) {
  const auto by_row = [](const at::Tensor& t) { return t.view({t.size(0), -1}); };
  at::Tensor w_all = by_row(parameter.w);
  const at::Tensor w = chunk.of(w_all), kept = keep.unsqueeze(1);
  g = by_row(g);
  if (args.unit_rows) g = g - (g * w).sum(1, true) * w;
  g = g * args.gradient_scale;
  const at::Tensor steps = skipped.defined() ? (skipped + 1).to(at::kDouble)
                                             : at::ones({1}, g.options().dtype(at::kDouble));
  const at::Tensor decay = at::pow(args.beta2, steps).to(at::kFloat).unsqueeze(1);
  at::Tensor m_all, v_all, m, v;
  if (parameter.m.defined()) m = chunk.of(m_all = by_row(parameter.m));
  if (parameter.v.defined()) v = chunk.of(v_all = by_row(parameter.v));
  const at::Tensor m_before = m, v_before = v;
  at::Tensor next = step_of(g, decay, args, m, v).neg_().add_(w);
  if (args.unit_rows) {
    const at::Tensor norm = next.norm(2, {1}, true);
    next.div_(at::where(norm > 0, norm, at::ones_like(norm)));
  }
  chunk.put(w_all, at::where(kept, next, w));
  if (m.defined()) chunk.put(m_all, at::where(kept, m, m_before));
  if (v.defined()) chunk.put(v_all, at::where(kept, v, v_before));
}

at::Tensor squares(const at::Tensor& rows) {
  const at::Tensor square = rows.to(at::kDouble).square_();
  return rows.dim() > 1 ? square.sum(1) : square;
}

// What a row pass adds up, on the device.
struct PassSums {
  at::Tensor skipped, square, b_dec_d;
  PassSums(const at::Tensor& w, bool fixed)
      : skipped(at::zeros({}, w.options().dtype(at::kLong))),
        square(at::zeros({}, w.options().dtype(at::kDouble))),
        b_dec_d(at::zeros({w.size(1)}, w.options().dtype(fixed ? at::kLong : at::kDouble))) {}
};

// Gradients, sums and the step of a chunk. A latent of which one gradient is not finite is left
// alone whole.
void pass_chunk(const std::vector<Lists>& sources, const Chunk& chunk, LatentRows& rows,
                const UpdateArgs& args, PassSums& sums) {
  RowGradients g = zero_gradients(chunk, rows.w_enc.w, rows.w_dec.w, rows.tied());
  {
    const at::Tensor w_dec = chunk.of(rows.w_dec.w);
    for (const Lists& source : sources) add_gradients(source, chunk, w_dec, g);
  }
  at::Tensor square = squares(g.w_enc_ld).add_(squares(g.b_enc_l));
  if (!rows.tied()) square.add_(squares(g.w_dec_ld));
  const at::Tensor sound = (square * (args.gradient_scale * args.gradient_scale)).isfinite();
  const at::Tensor unsound = sound.logical_not();
  sums.skipped.add_(unsound.sum());
  sums.square.add_(square.masked_fill(unsound, 0).sum());
  const at::Tensor input = g.input_l.masked_fill(unsound, 0).to(at::kDouble);
  const at::Tensor w_enc = chunk.of(rows.w_enc.w).to(at::kDouble);
  if (args.b_dec_up > 0)
    sums.b_dec_d.sub_((w_enc * (input * args.b_dec_up).unsqueeze(1)).round_().to(at::kLong).sum(0));
  else
    sums.b_dec_d.sub_(w_enc.t().mv(input));
  at::Tensor skipped;
  if (rows.last_step_l.defined()) {
    const at::Tensor last = chunk.of(rows.last_step_l);
    skipped = args.step - 1 - last;
    chunk.put(rows.last_step_l, last.masked_fill(sound, args.step));
  }
  UpdateArgs plain = args;
  plain.unit_rows = false;
  if (!rows.tied()) update_chunk(rows.w_dec, chunk, g.w_dec_ld, sound, skipped, args);
  g.w_dec_ld = at::Tensor();
  update_chunk(rows.w_enc, chunk, g.w_enc_ld, sound, skipped, plain);
  update_chunk(rows.b_enc, chunk, g.b_enc_l, sound, skipped, plain);
}

}  // namespace

at::Tensor tensor_decode(const Codes& codes, const at::Tensor& w_dec_ld) {
  return sum_lists(w_dec_ld, codes.latent.to(at::kLong), codes.row_start, codes.value);
}

// Integers add alike in any order: entries may come in chunks.
at::Tensor tensor_decode_fixed(const Codes& codes, const at::Tensor& w_dec_ld, double up,
                               int64_t work_bytes) {
  constexpr int64_t kElementBytes = 32;  // fp32, fp64, i64 and a temporary
  const int64_t d = w_dec_ld.size(1);
  const int64_t chunk = std::max<int64_t>(1, work_bytes / (kElementBytes * d));
  at::Tensor out = at::zeros({codes.rows, d}, w_dec_ld.options().dtype(at::kLong));
  const at::Tensor row = rows_of(codes);
  for (int64_t first = 0; first < codes.nnz(); first += chunk) {
    const auto of = [&](const at::Tensor& t) {
      return t.narrow(0, first, std::min(chunk, codes.nnz() - first));
    };
    at::Tensor terms = w_dec_ld.index_select(0, of(codes.latent)).to(at::kDouble);
    terms.mul_((of(codes.value).to(at::kDouble) * up).unsqueeze(1)).round_();
    out.index_add_(0, of(row), terms.to(at::kLong));
  }
  return out;
}

LatentCodes tensor_by_latent(const Codes& codes) {
  const auto [sorted, order] = codes.latent.sort(/*stable=*/true, 0, false);
  const at::Tensor edges = at::arange(codes.latents + 1, sorted.options());
  return {codes.rows, codes.latents, at::searchsorted(sorted, edges),
          rows_of(codes).index_select(0, order).to(at::kInt), codes.value.index_select(0, order)};
}

at::Tensor tensor_products(const Codes& codes, const at::Tensor& x_bd, const at::Tensor& w_ld) {
  if (codes.nnz() == 0) return at::zeros({0}, x_bd.options());
  return products(w_ld, x_bd, codes.latent.to(at::kLong), codes.row_start, rows_of(codes));
}

void tensor_row_gradients(const RowGradientArgs& args, const RowGradients& out,
                          int64_t work_bytes) {
  const GradientSource source{args.codes, args.x_bd, args.g_bd, 1, args.l1, {}, args.path};
  const std::vector<Lists> lists = {Lists(source, args.codes.latents)};
  const bool tied = out.w_dec_ld.is_same(out.w_enc_ld);
  at::Tensor w_dec = out.w_dec_ld, w_enc = out.w_enc_ld, b_enc = out.b_enc_l, input = out.input_l;
  for_chunks(lists, args.codes.latents, /*all=*/false,
             rows_of_chunk(args.w_dec_ld.size(1), work_bytes), work_bytes, [&](const Chunk& chunk) {
               RowGradients g = zero_gradients(chunk, args.x_bd, args.w_dec_ld, tied);
               add_gradients(lists[0], chunk, chunk.of(args.w_dec_ld), g);
               chunk.add(w_enc, g.w_enc_ld);
               if (!tied) chunk.add(w_dec, g.w_dec_ld);
               chunk.add(b_enc, g.b_enc_l);
               chunk.add(input, g.input_l);
             });
}

int64_t tensor_update_rows(Parameter& parameter, const at::Tensor& g, const at::Tensor& skipped_l,
                           const UpdateArgs& args, int64_t work_bytes) {
  const int64_t rows = parameter.w.size(0);
  if (parameter.w.numel() == 0) return 0;
  const bool lazy = skipped_l.defined();
  const at::Tensor wanted = lazy ? skipped_l.ge(0).nonzero().squeeze(1) : at::Tensor();
  const int64_t count = lazy ? wanted.size(0) : rows;
  const int64_t piece = rows_of_chunk(parameter.w.numel() / rows, work_bytes);
  const double scale = args.gradient_scale * args.gradient_scale;
  at::Tensor refused = at::zeros({}, g.options().dtype(at::kLong));
  for (int64_t first = 0; first < count; first += piece) {
    const int64_t size = std::min(piece, count - first);
    const Chunk chunk{first, size, lazy ? wanted.narrow(0, first, size) : at::Tensor()};
    const at::Tensor its_g = chunk.of(g);
    const at::Tensor sound = (squares(its_g) * scale).isfinite();
    refused.add_(sound.logical_not().sum());
    update_chunk(parameter, chunk, its_g, sound, lazy ? chunk.of(skipped_l) : at::Tensor(), args);
  }
  return refused.item<int64_t>();
}

RowPassResult tensor_row_pass(std::span<const GradientSource> sources, LatentRows& rows,
                              const UpdateArgs& args, int64_t work_bytes) {
  const at::Tensor& w = rows.w_enc.w;
  std::vector<Lists> lists;
  for (const GradientSource& source : sources) lists.emplace_back(source, w.size(0));
  PassSums sums(w, args.b_dec_up > 0);
  for_chunks(lists, w.size(0), /*all=*/!rows.last_step_l.defined(),
             rows_of_chunk(w.size(1), work_bytes), work_bytes,
             [&](const Chunk& chunk) { pass_chunk(lists, chunk, rows, args, sums); });
  if (rows.screen != nullptr)
    for (int64_t j = 0; j < w.size(0); ++j)
      rows.screen->refresh(rows.first + j, w.const_data_ptr<float>() + j * w.size(1));
  return {sums.skipped.item<int64_t>(), sums.square.item<double>(), sums.b_dec_d};
}

}  // namespace megadict
