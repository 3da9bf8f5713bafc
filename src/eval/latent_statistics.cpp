#include "eval/latent_statistics.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "base/version.h"
#include "data/row_reader.h"
#include "io/staged_hdf5.h"
#include "model/tensor_views.h"

namespace megadict {

namespace {

constexpr int64_t kBlockRows = 1024;  // of decoder rows that are compared at once

// Keeps `list` sorted, best first; it has room for `top`.
void insert_code(TopCode* list, int64_t top, TopCode code) {
  if (top == 0 || (list[top - 1].row >= 0 && !code.before(list[top - 1]))) return;
  int64_t at = top - 1;
  for (; at > 0 && (list[at - 1].row < 0 || code.before(list[at - 1])); --at)
    list[at] = list[at - 1];
  list[at] = code;
}

template <class T>
std::vector<T> gathered(Communicator& group, std::vector<T> mine, const char* name) {
  const auto count = static_cast<int64_t>(mine.size() * sizeof(T));
  std::vector<T> all(mine.size() * static_cast<size_t>(group.size()));
  group.all_gather({mine.data(), count, DType::u8, Device::cpu},
                   {all.data(), count * group.size(), DType::u8, Device::cpu}, name);
  return all;
}

// Each shard's values of its latents, `width` of each, one shard after the other.
template <class T>
std::vector<T> of_all_latents(const Mesh& mesh, int64_t n, std::vector<T> mine, int64_t width,
                              const char* name) {
  const int64_t shards = mesh.feature_size(), widest = shard_of(n, shards, 0).size();
  mine.resize(static_cast<size_t>(widest * width));
  const std::vector<T> padded = gathered(*mesh.feature, std::move(mine), name);
  std::vector<T> all;
  for (int64_t f = 0; f < shards; ++f) {
    const auto begin = padded.begin() + f * widest * width;
    all.insert(all.end(), begin, begin + shard_of(n, shards, f).size() * width);
  }
  return all;
}

at::Tensor unit_rows(const at::Tensor& rows) {
  const at::Tensor norm = norms_of_rows(rows).unsqueeze(1);
  return at::where(norm > 0, rows.to(at::kDouble) / norm, at::zeros({}, norm.options()))
      .to(at::kFloat);
}

// Rows that a block of other rows may be nearest to.
void meet(const at::Tensor& mine, int64_t first_mine, const at::Tensor& block, int64_t first_block,
          std::vector<NearestRow>& nearest) {
  for (int64_t from = 0; from < mine.size(0); from += kBlockRows) {
    const int64_t count = std::min(kBlockRows, mine.size(0) - from);
    at::Tensor cosine = at::mm(mine.narrow(0, from, count), block.t());
    for (int64_t i = 0; i < count; ++i) {
      const int64_t self = first_mine + from + i - first_block;
      if (0 <= self && self < block.size(0)) cosine[i][self].fill_(-2);
    }
    const auto [best, place] = cosine.max(1);
    const at::Tensor value = best.cpu().contiguous(), index = place.cpu().contiguous();
    for (int64_t i = 0; i < count; ++i) {
      NearestRow& held = nearest[static_cast<size_t>(from + i)];
      const float found = value.const_data_ptr<float>()[i];
      if (found < -1.5F || (held.latent >= 0 && found <= held.cosine)) continue;
      held = {first_block + index.const_data_ptr<int64_t>()[i], found};
    }
  }
}

template <class T>
void put(Hdf5File& file, const std::string& name, const std::vector<T>& values, int64_t n,
         int64_t width = 0) {
  std::vector<int64_t> shape = {n};
  if (width > 0) shape.push_back(width);
  file.create_dataset(name, shape, dtype_of<T>());
  file.write_rows(name, {0, n}, view_of(values.data(), static_cast<int64_t>(values.size())));
}

bool all_have(const ShardIndex& data, bool ShardInfo::*column) {
  return std::all_of(data.shards().begin(), data.shards().end(),
                     [&](const ShardInfo& shard) { return shard.*column; });
}

void put_column(Hdf5File& file, const ShardIndex& data, const std::string& column,
                const std::vector<TopCode>& top, int64_t n, int64_t width) {
  const std::vector<uint32_t> values = read_column(data, column, {0, data.rows()});
  std::vector<uint32_t> of_top;
  for (const TopCode& code : top)
    of_top.push_back(code.row < 0 ? 0 : values[static_cast<size_t>(code.row)]);
  put(file, "top_" + column, of_top, n, width);
}

void put_sums(Hdf5File& file, const LatentSums& sums, const LatentFileFacts& facts, int64_t n,
              int64_t width) {
  std::vector<float> frequency, mean, largest, values;
  std::vector<int64_t> rows;
  for (size_t j = 0; j < static_cast<size_t>(n); ++j) {
    const auto fired = static_cast<double>(sums.fired[j]);
    frequency.push_back(static_cast<float>(fired / static_cast<double>(facts.rows)));
    mean.push_back(static_cast<float>(fired > 0 ? sums.sum[j] / fired / facts.scale : 0));
    for (int64_t t = 0; t < width; ++t) {
      const TopCode& code = sums.top[j * static_cast<size_t>(width) + static_cast<size_t>(t)];
      values.push_back(static_cast<float>(code.value / facts.scale));
      rows.push_back(code.row);
    }
    largest.push_back(values[j * static_cast<size_t>(width)]);
  }
  put(file, "fired", sums.fired, n);
  put(file, "frequency", frequency, n);
  put(file, "mean", mean, n);
  put(file, "max", largest, n);
  put(file, "top_rows", rows, n, width);
  put(file, "top_values", values, n, width);
}

}  // namespace

LatentStatistics::LatentStatistics(Range latents, int64_t top) : latents_(latents), top_(top) {
  const auto count = static_cast<size_t>(latents.size());
  sums_.fired.resize(count);
  sums_.sum.resize(count);
  sums_.top.resize(count * static_cast<size_t>(top));
}

void LatentStatistics::add(const Codes& codes, int64_t first_row, int64_t rows) {
  if (codes.nnz() == 0) return;
  const at::Tensor start = codes.row_start.cpu(), latent = codes.latent.cpu(),
                   value = codes.value.cpu();
  const auto* begin = start.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t e = begin[t]; e < begin[t + 1]; ++e) {
      const auto j = static_cast<size_t>(latent.const_data_ptr<int32_t>()[e]);
      const float z = value.const_data_ptr<float>()[e];
      ++sums_.fired[j];
      sums_.sum[j] += z;
      insert_code(sums_.top.data() + j * static_cast<size_t>(top_), top_, {z, first_row + t});
    }
}

LatentSums LatentStatistics::reduce(Communicator& data) const {
  LatentSums all = sums_;
  const auto count = static_cast<int64_t>(all.fired.size());
  data.all_reduce(view_of(all.fired.data(), count), ReduceOp::sum, "latent counts");
  data.all_reduce(view_of(all.sum.data(), count), ReduceOp::sum, "latent sums");
  const std::vector<TopCode> lists = gathered(data, sums_.top, "latent top rows");
  all.top.assign(all.top.size(), {});
  for (size_t i = 0; i < lists.size(); ++i) {
    const size_t place = i % all.top.size();
    if (lists[i].row < 0) continue;
    const size_t list = place - place % static_cast<size_t>(top_);
    insert_code(all.top.data() + list, top_, lists[i]);
  }
  return all;
}

std::vector<NearestRow> nearest_decoder_rows(const Mesh& mesh, const Dictionary& dictionary) {
  const at::Tensor mine = unit_rows(dictionary.w_dec_ld);
  std::vector<NearestRow> nearest(static_cast<size_t>(dictionary.latents.size()));
  for (int shard = 0; shard < mesh.feature_size(); ++shard) {
    const Range theirs = shard_of(dictionary.n, mesh.feature_size(), shard);
    for (int64_t begin = theirs.begin; begin < theirs.end; begin += kBlockRows) {
      const int64_t count = std::min(kBlockRows, theirs.end - begin);
      at::Tensor block = shard == mesh.feature_index
                             ? mine.narrow(0, begin - theirs.begin, count).clone()
                             : at::empty({count, dictionary.d}, mine.options());
      mesh.feature->broadcast(view_of(block), shard, "decoder rows");
      meet(mine, dictionary.latents.begin, block, begin, nearest);
    }
  }
  return nearest;
}

void write_latent_statistics(const std::string& path, const Mesh& mesh,
                             const Dictionary& dictionary, const LatentStatistics& statistics,
                             const ShardIndex& data, const LatentFileFacts& facts) {
  const int64_t n = dictionary.n, width = statistics.top();
  LatentSums sums = statistics.reduce(*mesh.data);
  sums.fired = of_all_latents(mesh, n, std::move(sums.fired), 1, "latent counts");
  sums.sum = of_all_latents(mesh, n, std::move(sums.sum), 1, "latent sums");
  sums.top = of_all_latents(mesh, n, std::move(sums.top), width, "latent top rows");
  const at::Tensor norm = norms_of_rows(dictionary.w_dec_ld).to(at::kFloat).cpu().contiguous();
  const float* norms = norm.const_data_ptr<float>();
  const std::vector<float> norm_n =
      of_all_latents(mesh, n, std::vector<float>(norms, norms + norm.numel()), 1, "decoder norms");
  std::vector<NearestRow> nearest;
  if (facts.neighbours)
    nearest = of_all_latents(mesh, n, nearest_decoder_rows(mesh, dictionary), 1, "nearest rows");
  if (mesh.world->rank() != 0) return;

  StagedHdf5 staged(path);
  Hdf5File& file = staged.file();
  put_sums(file, sums, facts, n, width);
  put(file, "decoder_norm", norm_n, n);
  if (facts.neighbours) {
    std::vector<int64_t> latent;
    std::vector<float> cosine;
    for (const NearestRow& row : nearest) {
      latent.push_back(row.latent);
      cosine.push_back(row.cosine);
    }
    put(file, "nearest", latent, n);
    put(file, "nearest_cosine", cosine, n);
  }
  if (all_have(data, &ShardInfo::has_tokens)) put_column(file, data, "tokens", sums.top, n, width);
  if (all_have(data, &ShardInfo::has_position))
    put_column(file, data, "position", sums.top, n, width);
  if (all_have(data, &ShardInfo::has_document))
    put_column(file, data, "document", sums.top, n, width);
  file.set("/", "megadict_version", std::string(version()));
  file.set("/", "dictionary", facts.dictionary);
  file.set("/", "data", facts.data);
  file.set("/", "data_fingerprint", data.fingerprint());
  file.set("/", "n_latents", n);
  file.set("/", "rows", facts.rows);
  staged.commit();
}

}  // namespace megadict
