#include "model/batch_topk.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>
#include <vector>

#include "model/tensor_views.h"

namespace megadict {

namespace {

constexpr int kValueBits = 32;
constexpr int64_t kBlockElements = int64_t{1} << 25;  // of rows x latents encoded again at once
// What is encoded again is to be above this part of the bound, which is in it.
constexpr float kBelow = 1 - 1e-5f;

// Positive pre-activations of the rows here, in no particular order.
struct Entries {
  at::Tensor value;   // f32 [m]
  at::Tensor row;     // i64 [m]
  at::Tensor latent;  // i32 [m], local

  Entries where(const at::Tensor& mask) const {
    return {value.masked_select(mask), row.masked_select(mask), latent.masked_select(mask)};
  }
};

Entries joined(const std::vector<Entries>& parts) {
  std::vector<at::Tensor> value, row, latent;
  for (const Entries& part : parts) {
    value.push_back(part.value);
    row.push_back(part.row);
    latent.push_back(part.latent);
  }
  return {at::cat(value), at::cat(row), at::cat(latent)};
}

// NaN counts as positive, so that it stays visible.
at::Tensor is_positive(const at::Tensor& value) {
  return value.le(0).logical_not();
}

Entries entries_of(const Candidates& lists) {
  const at::Tensor& value = lists.value;
  const at::Tensor row =
      at::arange(value.size(0), value.options().dtype(at::kLong)).unsqueeze(1).expand_as(value);
  return Entries{value, row, lists.latent}.where(is_positive(value));
}

Entries entries_of(const Codes& codes, const at::Tensor& rows) {
  return {codes.value, at::repeat_interleave(rows, codes.row_start.diff()), codes.latent};
}

// ordered_bits() of kernels/order.h, of positive values and NaN.
at::Tensor keys_of(const at::Tensor& value) {
  const at::Tensor bits = value.contiguous().view(at::kInt).to(at::kLong);
  return bits.masked_fill(value.isnan(), 0x7FFFFFFF) + 0x80000000ll;
}

float value_of(int64_t key) {
  return std::bit_cast<float>(static_cast<uint32_t>(key) & 0x7FFFFFFFu);
}

// A key by its rank among all ranks' keys, largest first.
struct Ranked {
  int64_t keys = 0;             // there are so many; 0 = nothing else is set
  int64_t key = 0;              // of the rank asked for, of the last where there are fewer
  int64_t above = 0, tied = 0;  // keys larger than it, equal to it
  int64_t watched = 0;          // at least as many as there are watched keys that reach it
};

// How many keys that begin with `prefix` have each of the next `digit` bits; `shift` bits follow.
at::Tensor histogram(const at::Tensor& keys, int64_t prefix, int shift, int digit) {
  const at::Tensor next = keys.bitwise_right_shift(shift);
  const at::Tensor mine = next.bitwise_right_shift(digit).eq(prefix);
  const int64_t bins = int64_t{1} << digit;
  return at::bincount(next.masked_select(mine).bitwise_and(bins - 1), {}, bins);
}

// Keys below 2^bits. Watched keys are compared by the bits known before the last round, so that
// their number rides in its message. Collective over world.
Ranked find_rank(Communicator& world, const at::Tensor& keys, int bits, int64_t rank,
                 const at::Tensor& watched, const char* name) {
  Ranked out;
  for (int left = bits; left > 0;) {
    const int digit = std::min(left, kRadixBits), shift = left - digit;
    at::Tensor message = at::cat({histogram(keys, out.key, shift, digit),
                                  watched.bitwise_right_shift(left).ge(out.key).sum().view({1})});
    world.all_reduce(view_of(message), ReduceOp::sum, name);
    message = message.to(at::kCPU);
    const int64_t* count = message.const_data_ptr<int64_t>();
    int64_t bin = message.size(0) - 2;
    if (left == bits) {
      for (int64_t i = 0; i <= bin; ++i) out.keys += count[i];
      rank = std::min(rank, out.keys);
      if (out.keys == 0) return out;
    }
    out.watched = count[bin + 1];
    for (; out.above + count[bin] < rank; --bin) out.above += count[bin];
    out.tied = count[bin];
    out.key = (out.key << digit) | bin;
    left = shift;
  }
  return out;
}

// The entries of other rows and everything above `threshold` in `rows`; of both together perhaps
// no more than the best `most`: a row of huge norm may hold half the dictionary.
Entries encode_again(const EncodeArgs& input, const Screen* screen, const at::Tensor& rows,
                     float threshold, int64_t most, const Entries& others) {
  const int64_t block =
      std::max<int64_t>(1, kBlockElements / std::max<int64_t>(input.w_enc_ld.size(0), 1));
  std::vector<Entries> parts = {others};
  int64_t held = others.value.size(0);
  for (int64_t begin = 0; begin < rows.size(0); begin += block) {
    const at::Tensor some = rows.narrow(0, begin, std::min(block, rows.size(0) - begin));
    const at::Tensor x = input.x_bd.index_select(0, some);
    const EncodeArgs part{x, input.w_enc_ld, input.b_enc_l};
    parts.push_back(entries_of(
        screen != nullptr ? screen->above(part, threshold) : kernels_for(x).above(part, threshold),
        some));
    held += parts.back().value.size(0);
    if (held <= 2 * most) continue;
    const Entries all = joined(parts);
    const at::Tensor least = std::get<0>(all.value.kthvalue(held - most + 1));
    parts = {all.where(all.value.lt(least).logical_not())};  // ties stay, and NaN
    held = parts.back().value.size(0);
    threshold = std::max(threshold, least.item<float>() * kBelow);
  }
  return joined(parts);
}

// Of the entries that tie at the threshold, `wanted` by (row, latent): ids of the batch's entries
// up to the one returned. Collective over world.
int64_t last_tied_id(Communicator& world, const at::Tensor& tied_ids, int64_t wanted,
                     int64_t last_id) {
  const int bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(last_id)));
  const Ranked found = find_rank(world, last_id - tied_ids, std::max(bits, 1), wanted,
                                 tied_ids.narrow(0, 0, 0), "batchtopk ties");
  return last_id - found.key;
}

Codes codes_of(const Entries& entries, int64_t rows, int64_t latents) {
  const auto [row, order] = entries.row.sort(/*stable=*/true, 0, /*descending=*/false);
  at::Tensor start = at::zeros({rows + 1}, row.options());
  start.narrow(0, 1, rows).copy_(at::bincount(row, {}, rows).narrow(0, 0, rows).cumsum(0));
  return {rows, latents, start, entries.latent.index_select(0, order),
          entries.value.index_select(0, order)};
}

}  // namespace

int64_t list_width(int64_t k) {
  return 2 * k;
}

BatchSelection select_batch_topk(Communicator& world, const EncodeArgs& input,
                                 const Candidates& lists, const BatchSelectArgs& args) {
  const int64_t rows = lists.value.size(0), width = lists.value.size(1);
  const int64_t latents = input.w_enc_ld.size(0), wanted = args.batch_rows * args.k;
  Entries entries = entries_of(lists);
  // The last of a list that may be too short. Other rows hold no more than they list.
  const bool short_lists = width > 0 && width < latents;
  const at::Tensor last =
      short_lists ? lists.value.select(1, width - 1) : at::zeros({rows}, lists.value.options());
  const at::Tensor full = last.masked_select(is_positive(last));
  Ranked found = find_rank(world, keys_of(entries.value), kValueBits, wanted, keys_of(full),
                           "batchtopk values");
  if (found.watched > 0) {
    const float bound = found.keys < wanted ? 0.0f : value_of(found.key);
    const at::Tensor again = is_positive(last).logical_and(last.lt(bound).logical_not());
    const at::Tensor complete = again.index_select(0, entries.row).logical_not();
    entries = encode_again(input, args.screen, again.nonzero().squeeze(1), bound * kBelow, wanted,
                           entries.where(complete));
    found = find_rank(world, keys_of(entries.value), kValueBits, wanted, keys_of(full),
                      "batchtopk values again");
  }
  const at::Tensor keys = keys_of(entries.value);
  at::Tensor keep = keys.ge(found.key);
  if (found.above + found.tied > wanted) {
    const at::Tensor ids = (entries.row + args.first_row) * args.latents +
                           (entries.latent.to(at::kLong) + args.first_latent);
    const at::Tensor tied = keys.eq(found.key);
    const int64_t end = last_tied_id(world, ids.masked_select(tied), wanted - found.above,
                                     args.batch_rows * args.latents - 1);
    keep = keep.logical_and(tied.logical_not().logical_or(ids.le(end)));
  }
  BatchSelection out{codes_of(entries.where(keep), rows, latents), 0};
  if (found.keys > 0) out.least = value_of(found.key);
  return out;
}

}  // namespace megadict
