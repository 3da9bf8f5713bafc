#include "train/token_exchange.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>
#include <numeric>

#include "model/forward.h"
#include "model/tensor_views.h"

namespace megadict {

namespace {

// All data rows' [rows, d], one after the other.
Arriving start_over_data(const Mesh& mesh, const at::Tensor& mine, const char* name) {
  const at::Tensor own = mine.contiguous();
  Arriving all{at::empty({own.size(0) * mesh.data_size(), own.size(1)}, own.options()), own};
  all.pending = mesh.data->start_all_gather(view_of(own), view_of(all.tensor), name);
  return all;
}

// Where each owner's lists begin among lists with ascending local ids (undefined: list j is latent
// j): [D + 1].
std::vector<int64_t> list_cuts(const TrainState& state, int64_t lists, const at::Tensor& latent) {
  std::vector<int64_t> cuts;
  for (int64_t owner = 0; owner <= state.data_size; ++owner) {
    const int64_t first = owner * state.block;
    if (!latent.defined()) {
      cuts.push_back(std::min(first, lists));
      continue;
    }
    const auto* ids = latent.const_data_ptr<int64_t>();
    cuts.push_back(std::lower_bound(ids, ids + lists, first) - ids);
  }
  return cuts;
}

// For each owner its lists' headers (list, count), then their entries (row, value), two words each.
using Message = ArrivingLists::Message;

Message pack(const LatentCodes& codes, const std::vector<int64_t>& cuts) {
  const auto* start = codes.latent_start.const_data_ptr<int64_t>();
  const auto* row = codes.row.const_data_ptr<int32_t>();
  const auto* value = codes.value.const_data_ptr<float>();
  Message out;
  for (size_t owner = 0; owner + 1 < cuts.size(); ++owner) {
    const size_t before = out.words.size();
    for (int64_t list = cuts[owner]; list < cuts[owner + 1]; ++list)
      if (const int64_t count = start[list + 1] - start[list]; count > 0) {
        out.words.push_back(static_cast<int32_t>(list - cuts[owner]));
        out.words.push_back(static_cast<int32_t>(count));
      }
    const auto headers = static_cast<int64_t>(out.words.size() - before) / 2;
    const int64_t first = start[cuts[owner]], entries = start[cuts[owner + 1]] - first;
    for (int64_t e = first; e < first + entries; ++e) {
      out.words.push_back(row[e]);
      out.words.push_back(std::bit_cast<int32_t>(value[e]));
    }
    out.word_counts.push_back(2 * (headers + entries));
    out.sizes.insert(out.sizes.end(), {headers, entries});
  }
  return out;
}

// What arrived as one set of lists; rows of sender i are shifted by i * rows.
LatentCodes merge(const Message& from, int64_t lists, int64_t rows) {
  const size_t senders = from.word_counts.size();
  LatentCodes out{
      rows * static_cast<int64_t>(senders), lists, at::zeros({lists + 1}, at::kLong), {}, {}};
  auto* start = out.latent_start.mutable_data_ptr<int64_t>();
  const auto each = [&](auto&& visit) {
    const int32_t* word = from.words.data();
    for (size_t i = 0; i < senders; ++i) {
      const int32_t* entry = word + 2 * from.sizes[2 * i];
      for (int64_t h = 0; h < from.sizes[2 * i]; ++h) {
        visit(static_cast<int64_t>(i), word[2 * h], word[2 * h + 1], entry);
        entry += 2 * word[2 * h + 1];
      }
      word = entry;
    }
  };
  each([&](int64_t, int32_t list, int32_t count, const int32_t*) { start[list + 1] += count; });
  std::partial_sum(start, start + lists + 1, start);
  out.row = at::empty({start[lists]}, at::kInt);
  out.value = at::empty({start[lists]}, at::kFloat);
  auto* row = out.row.mutable_data_ptr<int32_t>();
  auto* value = out.value.mutable_data_ptr<float>();
  std::vector<int64_t> next(start, start + lists);
  each([&](int64_t sender, int32_t list, int32_t count, const int32_t* entry) {
    for (int32_t e = 0; e < count; ++e) {
      const int64_t at = next[static_cast<size_t>(list)]++;
      row[at] = static_cast<int32_t>(entry[2 * e] + sender * rows);
      value[at] = std::bit_cast<float>(entry[2 * e + 1]);
    }
  });
  return out;
}

// Every owner gets its lists of all data rows. On the host: the lists are cut and merged there.
ArrivingLists lists_to_owners(const Mesh& mesh, const LatentCodes& mine,
                              const std::vector<int64_t>& cuts, const char* name) {
  ArrivingLists out;
  out.device = mine.value.device();
  out.rows = mine.rows;
  const auto me = static_cast<size_t>(mesh.data_index);
  out.lists = cuts[me + 1] - cuts[me];
  out.sent = pack({mine.rows, mine.latents, mine.latent_start.to(at::kCPU), mine.row.to(at::kCPU),
                   mine.value.to(at::kCPU)},
                  cuts);
  const auto ranks = static_cast<size_t>(mesh.data_size());
  Message& got = out.got;
  got.sizes.resize(2 * ranks);
  mesh.data->all_to_all(view_of(out.sent.sizes.data(), static_cast<int64_t>(2 * ranks)),
                        view_of(got.sizes.data(), static_cast<int64_t>(2 * ranks)), "list sizes");
  for (size_t i = 0; i < ranks; ++i)
    got.word_counts.push_back(2 * (got.sizes[2 * i] + got.sizes[2 * i + 1]));
  got.words.resize(static_cast<size_t>(
      std::accumulate(got.word_counts.begin(), got.word_counts.end(), int64_t{0})));
  const std::vector<int32_t>& words = out.sent.words;
  out.pending = mesh.data->start_all_to_all_v(
      view_of(words.data(), static_cast<int64_t>(words.size())), out.sent.word_counts,
      view_of(got.words.data(), static_cast<int64_t>(got.words.size())), got.word_counts, name);
  return out;
}

at::Tensor dead_on_host(const AuxK& aux) {
  return aux.dead_l.to(at::kCPU);
}

}  // namespace

CodePath path_of(PartOf of, const Dictionary& dictionary, Range latents) {
  if (of == PartOf::codes) return {};
  if (of == PartOf::gates) return {.decoder = false};
  const at::Tensor r_mag = dictionary.extra_l[0].narrow(0, latents.begin, latents.size());
  return {.gain_l = exp_each(r_mag), .bias = false};
}

LatentCodes ArrivingLists::wait() {
  pending.wait();
  LatentCodes out = merge(got, lists, rows);
  out.latent_start = out.latent_start.to(device);
  out.row = out.row.to(device);
  out.value = out.value.to(device);
  return out;
}

ArrivingPart tokens_to_owners(const Mesh& mesh, const TrainState& state, const AuxK& aux,
                              BatchPart mine) {
  ArrivingPart out;
  out.mine_ = std::move(mine);
  if (mesh.data_size() == 1) return out;
  out.state_ = &state;
  BatchPart& part = out.mine_;
  out.codes_ = lists_to_owners(mesh, part.codes, list_cuts(state, part.codes.latents, {}),
                               "codes to owners");
  if (part.raw_bd.defined()) out.raw_ = start_over_data(mesh, part.raw_bd, "rows to owners");
  out.g_ = start_over_data(mesh, part.g_bd, "residual gradient to owners");
  if (part.aux) {
    const AuxForward& its = *part.aux;
    out.aux_codes_ =
        lists_to_owners(mesh, its.codes, list_cuts(state, its.codes.latents, dead_on_host(aux)),
                        "auxk codes to owners");
    out.aux_g_ = start_over_data(mesh, its.g_bd, "auxk residual gradient to owners");
  }
  const bool with_aux = part.aux.has_value();
  part = {.l1 = part.l1, .of = part.of};  // what is sent is kept where it is sent from
  if (with_aux) part.aux.emplace();
  return out;
}

BatchPart ArrivingPart::wait() {
  if (state_ == nullptr) return std::move(mine_);
  BatchPart out = std::move(mine_);
  out.codes = codes_.wait();
  if (const at::Tensor raw = raw_.wait(); raw.defined()) {
    out.xc_bd = normalized(raw, state_->normalization);
    out.xc_bd.sub_(state_->dictionary.b_dec_d);
  }
  out.g_bd = g_.wait();
  if (out.aux) out.aux = AuxForward{aux_codes_.wait(), aux_g_.wait()};
  return out;
}

at::Tensor own_dead(const TrainState& state, const AuxK& aux) {
  const at::Tensor& dead = aux.dead_l;
  const Range own = state.own;
  return dead.masked_select(dead.ge(own.begin).logical_and(dead.lt(own.end))) - own.begin;
}

at::Tensor touched_rows(const TrainState& state, const AuxK& aux,
                        std::span<const BatchPart> parts) {
  at::Tensor touched =
      at::zeros({state.own.size()}, aux.dead_l.defined()
                                        ? aux.dead_l.options().dtype(at::kBool)
                                        : state.tokens_since_fired_l.options().dtype(at::kBool));
  for (const BatchPart& part : parts) {
    touched.logical_or_(part.codes.latent_start.diff().gt(0));
    if (part.aux)
      touched.index_fill_(
          0, own_dead(state, aux).masked_select(part.aux->codes.latent_start.diff().gt(0)), true);
  }
  return touched;
}

namespace {

at::Tensor empty_rows(const Dictionary& dictionary, int64_t rows) {
  const int64_t numbers = (dictionary.tied() ? 1 : 2) * dictionary.d + 2;
  return at::empty({rows, numbers}, dictionary.w_enc_ld.options());
}

// Some of an owner's rows as a message [rows, id + b_enc + W_enc + W_dec], and back.
at::Tensor pack_rows(const Dictionary& dictionary, const at::Tensor& latent) {
  at::Tensor out = empty_rows(dictionary, latent.size(0));
  out.select(1, 0).view(at::kInt).copy_(latent);
  out.select(1, 1).copy_(dictionary.b_enc_l.index_select(0, latent));
  out.narrow(1, 2, dictionary.d).copy_(dictionary.w_enc_ld.index_select(0, latent));
  if (!dictionary.tied())
    out.narrow(1, 2 + dictionary.d, dictionary.d)
        .copy_(dictionary.w_dec_ld.index_select(0, latent));
  return out;
}

at::Tensor unpack_rows(const at::Tensor& message, Dictionary& dictionary) {
  const at::Tensor latent = message.select(1, 0).view(at::kInt).to(at::kLong);
  dictionary.b_enc_l.index_copy_(0, latent, message.select(1, 1));
  dictionary.w_enc_ld.index_copy_(0, latent, message.narrow(1, 2, dictionary.d));
  if (!dictionary.tied())
    dictionary.w_dec_ld.index_copy_(0, latent, message.narrow(1, 2 + dictionary.d, dictionary.d));
  return latent;
}

}  // namespace

at::Tensor share_touched_rows(const Mesh& mesh, const at::Tensor& touched, TrainState& state) {
  Dictionary& dictionary = state.dictionary;
  const at::Tensor mine = touched.nonzero().squeeze(1) + state.own.begin;
  std::vector<int64_t> counts(static_cast<size_t>(mesh.data_size()));
  const int64_t my_count = mine.size(0);
  mesh.data->all_gather(view_of(&my_count, 1), view_of(counts.data(), mesh.data_size()),
                        "row counts");
  const int64_t row_bytes = static_cast<int64_t>(sizeof(float)) * (2 * dictionary.d + 2);
  const int64_t piece = std::max<int64_t>(1, kRowPieceBytes / row_bytes);
  std::vector<at::Tensor> arrived;
  for (int owner = 0; owner < mesh.data_size(); ++owner)
    for (int64_t first = 0; first < counts[static_cast<size_t>(owner)]; first += piece) {
      const int64_t rows = std::min(piece, counts[static_cast<size_t>(owner)] - first);
      const bool is_mine = owner == mesh.data_index;
      at::Tensor message = is_mine ? pack_rows(dictionary, mine.narrow(0, first, rows))
                                   : empty_rows(dictionary, rows);
      mesh.data->broadcast(view_of(message), owner, "updated rows");
      if (!is_mine) arrived.push_back(unpack_rows(message, dictionary));
    }
  return arrived.empty() ? mine.narrow(0, 0, 0) : at::cat(arrived);
}

}  // namespace megadict
