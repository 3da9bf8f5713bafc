// Encoding and selection by tensor operations, in tiles of rows and latents: of b x l only a tile
// exists at a time.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/tensor_kernels.h"

namespace megadict {

namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();
// Of a value of a tile: its place and list entry where it is positive, the integers on the way to
// order_keys().
constexpr int64_t kAboveBytes = 40, kKeyBytes = 48;

// order_key() of order.h as a signed integer that sorts the same way: (ordered value << 32) minus
// the position.
at::Tensor order_keys(const at::Tensor& value, const at::Tensor& position) {
  const at::Tensor bits =
      (value + 0.0).view(at::kInt).to(at::kLong).masked_fill(value.isnan(), 0x7FFFFFFF);
  // Negative floats: the sign bit set and the rest inverted, so that order is kept as integers.
  const at::Tensor ordered = at::where(bits >= 0, bits, -(bits.bitwise_and(0x7FFFFFFF)) - 1);
  return ordered * (int64_t{1} << 32) - position;
}

// The k largest keys of each row, best first; returns their columns.
at::Tensor top_columns(const at::Tensor& value, const at::Tensor& position, int64_t k) {
  return std::get<1>(order_keys(value, position).topk(k, 1, true, true));
}

at::Tensor top_columns(const at::Tensor& value, int64_t k) {
  return top_columns(value, at::arange(value.size(1), value.options().dtype(at::kLong)), k);
}

// Calls work(first, count) on pieces of [0, size).
template <class Work>
void for_pieces(int64_t size, int64_t piece, Work&& work) {
  for (int64_t first = 0; first < size; first += piece) work(first, std::min(piece, size - first));
}

// Calls work(first row, rows, first latent, latents, values) on tiles of v = x W_enc^T + b_enc;
// for every piece of rows latents ascend. Many rows share a pass over the encoder.
template <class Work>
void for_tiles(const EncodeArgs& args, int64_t most_values, Work&& work) {
  const int64_t rows = args.x_bd.size(0), l = args.w_enc_ld.size(0);
  if (rows == 0 || l == 0) return;
  const int64_t most = std::max<int64_t>(most_values, 1);
  const auto side = static_cast<int64_t>(std::sqrt(static_cast<double>(most)));
  const int64_t width = std::clamp<int64_t>(most / std::clamp<int64_t>(side, 1, rows), 1, l);
  const int64_t height = std::clamp<int64_t>(most / width, 1, rows);
  const at::Tensor memory = at::empty({height * width}, args.x_bd.options());
  for_pieces(rows, height, [&](int64_t row, int64_t count) {
    for_pieces(l, width, [&](int64_t first, int64_t latents) {
      at::Tensor v = memory.narrow(0, 0, count * latents).view({count, latents});
      at::addmm_out(v, args.b_enc_l.narrow(0, first, latents), args.x_bd.narrow(0, row, count),
                    args.w_enc_ld.narrow(0, first, latents).t());
      work(row, count, first, latents, v);
    });
  });
}

// The best k columns of a tile, in any order. A device's top-k breaks ties as it likes: rows in
// which the first value left out equals the last one taken are decided by their keys.
at::Tensor best_columns(const at::Tensor& v, int64_t k, int64_t work_bytes) {
  const int64_t width = v.size(1), taken = std::min(k, width);
  const auto [value, all] = v.topk(std::min(taken + 1, width), 1, true, true);
  at::Tensor columns = all.narrow(1, 0, taken);
  if (all.size(1) == taken) return columns;
  const at::Tensor last = value.select(1, taken - 1), next = value.select(1, taken);
  const at::Tensor tied = last.eq(next).logical_or(next.isnan()).nonzero().squeeze(1);
  if (tied.size(0) == 0) return columns;
  columns = columns.contiguous();
  for_pieces(tied.size(0), std::max<int64_t>(1, work_bytes / (kKeyBytes * width)),
             [&](int64_t first, int64_t count) {
               const at::Tensor rows = tied.narrow(0, first, count);
               columns.index_copy_(0, rows, top_columns(v.index_select(0, rows), taken));
             });
  return columns;
}

// The best k of two lists a row, in order.
Candidates merged(const Candidates& a, const Candidates& b, int64_t k) {
  const at::Tensor value = at::cat({a.value, b.value}, 1),
                   latent = at::cat({a.latent, b.latent}, 1);
  const at::Tensor columns = top_columns(value, latent.to(at::kLong), std::min(k, value.size(1)));
  return {value.gather(1, columns), latent.gather(1, columns)};
}

// Codes from dense values and a mask of the same shape; `latent` gives the id of each column.
Codes codes_where(const at::Tensor& mask, const at::Tensor& value, const at::Tensor& latent,
                  int64_t latents) {
  return {mask.size(0), latents, row_starts(mask.sum(1)), latent.masked_select(mask).to(at::kInt),
          value.masked_select(mask)};
}

}  // namespace

at::Tensor row_starts(const at::Tensor& counts) {
  at::Tensor start = at::zeros({counts.size(0) + 1}, counts.options().dtype(at::kLong));
  start.narrow(0, 1, counts.size(0)).copy_(counts.cumsum(0));
  return start;
}

Candidates tensor_topk(const EncodeArgs& args, int64_t k, int64_t work_bytes) {
  const int64_t rows = args.x_bd.size(0), l = args.w_enc_ld.size(0), kept = std::min(k, l);
  const auto options = args.x_bd.options();
  Candidates out{at::empty({rows, kept}, options),
                 at::empty({rows, kept}, options.dtype(at::kInt))};
  Candidates best;
  const auto take = [&](int64_t row, int64_t count, int64_t first, int64_t latents,
                        const at::Tensor& v) {
    if (first == 0)
      best = {at::empty({count, 0}, options), at::empty({count, 0}, out.latent.options())};
    const at::Tensor columns = best_columns(v, kept, work_bytes);
    best = merged(best, {v.gather(1, columns), (columns + first).to(at::kInt)}, kept);
    if (first + latents < l) return;
    out.value.narrow(0, row, count).copy_(best.value);
    out.latent.narrow(0, row, count).copy_(best.latent);
  };
  for_tiles(args, work_bytes / kTensorTileBytes, take);
  return out;
}

// Tiles give a row's entries in several pieces; where each belongs is known once all are counted.
Codes tensor_above(const EncodeArgs& args, float threshold, int64_t work_bytes) {
  struct Piece {
    at::Tensor row, place, latent, value;  // i32, of the entry within its row, i32, f32
  };
  const int64_t rows = args.x_bd.size(0);
  const auto ids = args.x_bd.options().dtype(at::kInt);
  at::Tensor counts = at::zeros({rows}, ids.dtype(at::kLong));
  std::vector<Piece> pieces;
  const auto take = [&](int64_t begin, int64_t count, int64_t first, int64_t, const at::Tensor& v) {
    const at::Tensor mask = v.le(threshold).logical_not();  // NaN stays visible
    const at::Tensor at = mask.nonzero(), row = at.select(1, 0), here = mask.sum(1);
    at::Tensor before = counts.narrow(0, begin, count);
    const at::Tensor offset = before - row_starts(here).narrow(0, 0, count);
    const at::Tensor place = at::arange(at.size(0), at.options()) + offset.index_select(0, row);
    pieces.push_back({(row + begin).to(at::kInt), place.to(at::kInt),
                      (at.select(1, 1) + first).to(at::kInt), v.masked_select(mask)});
    before.add_(here);
  };
  for_tiles(args, work_bytes / kAboveBytes, take);
  Codes codes{rows, args.w_enc_ld.size(0), row_starts(counts), {}, {}};
  const int64_t nnz = codes.row_start[rows].item<int64_t>();
  codes.latent = at::empty({nnz}, ids);
  codes.value = at::empty({nnz}, args.x_bd.options());
  for (Piece& piece : pieces) {
    const at::Tensor at = codes.row_start.index_select(0, piece.row) + piece.place;
    codes.latent.index_copy_(0, at, piece.latent);
    codes.value.index_copy_(0, at, piece.value);
    piece = {};
  }
  return codes;
}

void tensor_kth(const at::Tensor& values_psc, int64_t k, at::Tensor& tau_s, at::Tensor& cut_s,
                int64_t work_bytes) {
  const int64_t slot = values_psc.size(1), places = values_psc.size(0) * values_psc.size(2);
  tau_s = at::full({slot}, kNone, values_psc.options());
  cut_s = at::full({slot}, kCutAll, values_psc.options().dtype(at::kLong));
  if (places < k) return;
  for_pieces(
      slot, std::max<int64_t>(1, work_bytes / (kKeyBytes * places)),
      [&](int64_t first, int64_t count) {
        // [slot, parts * c]
        const at::Tensor lists = values_psc.narrow(1, first, count).permute({1, 0, 2}).flatten(1);
        const at::Tensor last = top_columns(lists, k).narrow(1, k - 1, 1);
        at::Tensor tau = tau_s.narrow(0, first, count), cut = cut_s.narrow(0, first, count);
        tau.copy_(lists.gather(1, last).squeeze(1));
        cut.copy_(last.squeeze(1)).masked_fill_(tau.eq(kNone), kCutAll);
      });
}

Codes tensor_keep(const Candidates& candidates, int64_t latents, const at::Tensor& tau_b,
                  const at::Tensor& cut_b, int64_t first) {
  const at::Tensor& v = candidates.value;
  const at::Tensor tau = tau_b.unsqueeze(1), cut = cut_b.unsqueeze(1);
  const at::Tensor position = at::arange(v.size(1), cut.options()) + first;
  const at::Tensor tied = v.eq(tau).logical_and(position.unsqueeze(0) <= cut);
  const at::Tensor keep = v.gt(tau).logical_or(tied).logical_and(v.gt(0)).logical_or(v.isnan());
  return codes_where(keep, v, candidates.latent, latents);
}

}  // namespace megadict
