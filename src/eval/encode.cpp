#include "eval/encode.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <memory>
#include <numeric>

#include "base/version.h"
#include "data/row_reader.h"
#include "eval/evaluate.h"
#include "io/staged_hdf5.h"
#include "model/forward.h"
#include "model/tensor_views.h"

namespace megadict {

namespace {

constexpr int64_t kChunk = 1 << 16;  // elements of a chunk of the file
constexpr const char* kColumns[] = {"tokens", "position", "document"};

// Entries of some rows: how many of each, then the entries row by row.
struct RowCodes {
  std::vector<int64_t> count;
  std::vector<int32_t> latent;  // global
  std::vector<float> value;
};

RowCodes local_codes(const Codes& codes, Range latents, int64_t rows) {
  RowCodes out;
  const at::Tensor start = codes.row_start.cpu();
  const auto* at = start.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < rows; ++t) out.count.push_back(at[t + 1] - at[t]);
  if (codes.nnz() == 0) return out;
  const at::Tensor latent = codes.latent.cpu().contiguous(), value = codes.value.cpu().contiguous();
  const auto* first = latent.const_data_ptr<int32_t>();
  const float* z = value.const_data_ptr<float>();
  for (int64_t e = 0; e < at[rows]; ++e)
    out.latent.push_back(first[e] + static_cast<int32_t>(latents.begin));
  out.value.assign(z, z + at[rows]);
  return out;
}

// Every rank's values at rank 0, one rank after the other; nothing elsewhere.
template <class T>
std::vector<T> to_rank_zero(Communicator& world, const std::vector<T>& mine, const char* name) {
  const auto ranks = static_cast<size_t>(world.size());
  const auto own = static_cast<int64_t>(mine.size());
  std::vector<int64_t> counts(ranks), send(ranks), receive(ranks);
  world.all_gather(view_of(&own, 1), view_of(counts.data(), world.size()), name);
  send[0] = own;
  if (world.rank() == 0) receive = counts;
  std::vector<T> all(
      static_cast<size_t>(std::accumulate(receive.begin(), receive.end(), int64_t{0})));
  world.all_to_all_v(view_of(mine.data(), own), send,
                     view_of(all.data(), static_cast<int64_t>(all.size())), receive, name);
  return all;
}

// What rank 0 received, in the order of the ranks, to rows of the batch with ascending latents.
RowCodes joined(const RowCodes& parts, int64_t rows, int data_size, int feature_size) {
  struct Place {
    size_t count, entry;
  };
  std::vector<Place> next;  // of each rank, in the received values
  size_t counts = 0, entries = 0;
  for (int r = 0; r < data_size * feature_size; ++r) {
    next.push_back({counts, entries});
    const Range mine = shard_of(rows, data_size, r / feature_size);
    for (int64_t t = 0; t < mine.size(); ++t) entries += static_cast<size_t>(parts.count[counts++]);
  }
  RowCodes out;
  std::vector<std::pair<int32_t, float>> row;
  for (int d = 0; d < data_size; ++d)
    for (int64_t t = 0; t < shard_of(rows, data_size, d).size(); ++t) {
      row.clear();
      for (int f = 0; f < feature_size; ++f) {
        Place& at = next[static_cast<size_t>(d * feature_size + f)];
        for (int64_t left = parts.count[at.count++]; left > 0; --left, ++at.entry)
          row.emplace_back(parts.latent[at.entry], parts.value[at.entry]);
      }
      std::sort(row.begin(), row.end());
      out.count.push_back(static_cast<int64_t>(row.size()));
      for (const auto& [latent, value] : row) {
        out.latent.push_back(latent);
        out.value.push_back(value);
      }
    }
  return out;
}

class CodesFile {
 public:
  explicit CodesFile(const std::string& path) : staged_(path) {
    file().create_dataset("row_ptr", {0}, DType::i64, kChunk);
    file().create_dataset("indices", {0}, DType::i32, kChunk);
    file().create_dataset("values", {0}, DType::f32, kChunk);
    const int64_t zero = 0;
    file().append_rows("row_ptr", view_of(&zero, 1));
  }

  void append(RowCodes batch, double scale) {
    for (int64_t& count : batch.count) count = entries_ += count;
    for (float& value : batch.value) value = static_cast<float>(value / scale);
    const auto entries = static_cast<int64_t>(batch.value.size());
    file().append_rows("row_ptr",
                       view_of(batch.count.data(), static_cast<int64_t>(batch.count.size())));
    if (entries == 0) return;
    file().append_rows("indices", view_of(batch.latent.data(), entries));
    file().append_rows("values", view_of(batch.value.data(), entries));
  }

  Hdf5File& file() { return staged_.file(); }
  int64_t entries() const { return entries_; }
  void commit() { staged_.commit(); }

 private:
  StagedHdf5 staged_;
  int64_t entries_ = 0;
};

void put_columns(Hdf5File& file, const ShardIndex& data, int64_t rows) {
  bool ShardInfo::*const present[] = {&ShardInfo::has_tokens, &ShardInfo::has_position,
                                      &ShardInfo::has_document};
  for (size_t c = 0; c < std::size(kColumns); ++c) {
    const auto has = [&](const ShardInfo& shard) { return shard.*present[c]; };
    if (!std::all_of(data.shards().begin(), data.shards().end(), has)) continue;
    file.create_dataset(kColumns[c], {0}, DType::u32, kChunk);
    for (int64_t begin = 0; begin < rows; begin += kChunk) {
      const Range part = {begin, std::min(rows, begin + kChunk)};
      const std::vector<uint32_t> values = read_column(data, kColumns[c], part);
      file.append_rows(kColumns[c], view_of(values.data(), part.size()));
    }
  }
}

void put_facts(Hdf5File& file, const Dictionary& dictionary, double scale, const ShardIndex& data,
               const EncodeFile& out, const EncodedFile& written) {
  file.set("/", "format", std::string("megadict.codes"));
  file.set("/", "megadict_version", std::string(version()));
  file.set("/", "rows", written.rows);
  file.set("/", "n_latents", dictionary.n);
  file.set("/", "entries", written.entries);
  file.set("/", "d_in", dictionary.d);
  file.set("/", "activation", dictionary.config.activation);
  file.set("/", "normalize_scale", scale);
  file.set("/", "dictionary", out.dictionary);
  file.set("/", "data", out.data);
  file.set("/", "data_fingerprint", data.fingerprint());
}

}  // namespace

EncodedFile encode_data_set(const Mesh& mesh, const Dictionary& dictionary,
                            const Normalization& normalization, const ShardIndex& data,
                            const EncodeFile& out) {
  const c10::NoGradGuard no_grad;
  EncodedFile written{out.rows > 0 ? std::min(out.rows, data.rows()) : data.rows(), 0};
  std::unique_ptr<CodesFile> file;
  if (mesh.world->rank() == 0) file = std::make_unique<CodesFile>(out.path);
  std::vector<int64_t> ids;
  for (int64_t begin = 0; begin < written.rows; begin += out.batch_rows) {
    ids.resize(static_cast<size_t>(std::min(out.batch_rows, written.rows - begin)));
    std::iota(ids.begin(), ids.end(), begin);
    const Rows rows = gather_rows(mesh, read_owned(mesh, data, ids), dictionary.d, normalization,
                                  dictionary.w_enc_ld.device());
    const RowCodes mine = local_codes(encode_rows(mesh, dictionary, rows, {}).codes,
                                      dictionary.latents, rows.real_rows());
    const RowCodes parts = {to_rank_zero(*mesh.world, mine.count, "code counts"),
                            to_rank_zero(*mesh.world, mine.latent, "code latents"),
                            to_rank_zero(*mesh.world, mine.value, "code values")};
    if (file)
      file->append(
          joined(parts, static_cast<int64_t>(ids.size()), mesh.data_size(), mesh.feature_size()),
          normalization.scale);
  }
  if (file) {
    written.entries = file->entries();
    put_columns(file->file(), data, written.rows);
    put_facts(file->file(), dictionary, normalization.scale, data, out, written);
    file->commit();
  }
  mesh.world->broadcast(view_of(&written.entries, 1), 0, "codes written");
  return written;
}

}  // namespace megadict
