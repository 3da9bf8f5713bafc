#include "eval/comparison.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/philox.h"
#include "model/forward.h"

namespace megadict {

namespace {

constexpr int64_t kBlockRows = 1024;
constexpr double kSplittingCosines[] = {0.5, 0.6, 0.7, 0.8, 0.9};

at::Tensor unit_rows(const at::Tensor& rows) {
  const at::Tensor norm = norms_of_rows(rows).unsqueeze(1);
  return at::where(norm > 0, rows.to(at::kDouble) / norm, at::zeros({}, norm.options()))
      .to(at::kFloat);
}

// `count` of the rows, in order, drawn by seed.
at::Tensor sample_rows(const at::Tensor& rows, int64_t count, uint64_t seed) {
  std::vector<int64_t> ids(static_cast<size_t>(rows.size(0)));
  std::iota(ids.begin(), ids.end(), 0);
  const Rng rng{seed, Purpose::random_baseline, 1000};
  std::vector<uint64_t> key;
  for (const int64_t id : ids) key.push_back(rng.bits64(static_cast<uint64_t>(id)));
  std::sort(ids.begin(), ids.end(), [&](int64_t a, int64_t b) {
    return key[static_cast<size_t>(a)] < key[static_cast<size_t>(b)];
  });
  ids.resize(static_cast<size_t>(count));
  std::sort(ids.begin(), ids.end());
  return rows.index_select(0, at::tensor(ids));
}

at::Tensor random_like(const at::Tensor& rows, uint64_t seed) {
  at::Tensor out = at::empty(rows.sizes(), at::kFloat);
  const Rng rng{seed, Purpose::random_baseline, 1001};
  auto* to = out.mutable_data_ptr<float>();
  for (int64_t i = 0; i < out.numel(); ++i)
    to[i] = static_cast<float>(rng.normals(static_cast<uint64_t>(i / 2))[i % 2]);
  return out;
}

CosineCounts count_cosines(const at::Tensor& rows) {
  const at::Tensor unit = unit_rows(rows);
  const int64_t n = unit.size(0);
  CosineCounts out;
  out.largest = n > 1 ? -1 : 0;
  double sum = 0;
  for (int64_t from = 0; from < n; from += kBlockRows) {
    const int64_t count = std::min(kBlockRows, n - from);
    // Row i with the rows after it.
    const at::Tensor cosine =
        at::mm(unit.narrow(0, from, count), unit.narrow(0, from, n - from).t()).contiguous();
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = i + 1; j < n - from; ++j) {
        const double value = cosine.const_data_ptr<float>()[i * (n - from) + j];
        const double bin = std::floor((value + 1) * kCosineBins / 2);
        ++out.counts[static_cast<size_t>(std::clamp(bin, 0.0, kCosineBins - 1.0))];
        sum += std::abs(value);
        out.largest = std::max(out.largest, value);
      }
  }
  const double pairs = static_cast<double>(n) * static_cast<double>(n - 1) / 2;
  out.mean_absolute = pairs > 0 ? sum / pairs : std::numeric_limits<double>::quiet_NaN();
  return out;
}

nlohmann::ordered_json counts_json(const CosineCounts& counts) {
  return {{"counts", counts.counts},
          {"mean_absolute", counts.mean_absolute},
          {"largest", counts.largest}};
}

}  // namespace

CosineHistogram pairwise_cosines(const at::Tensor& w_dec_nd, uint64_t seed) {
  const at::Tensor rows =
      w_dec_nd.size(0) > kHistogramRows ? sample_rows(w_dec_nd, kHistogramRows, seed) : w_dec_nd;
  return {rows.size(0), count_cosines(rows), count_cosines(random_like(rows, seed))};
}

nlohmann::ordered_json cosines_json(const CosineHistogram& histogram) {
  return {{"from", -1.0},
          {"width", 2.0 / kCosineBins},
          {"rows", histogram.rows},
          {"own", counts_json(histogram.own)},
          {"random", counts_json(histogram.random)}};
}

std::string cosines_text(const CosineHistogram& histogram) {
  const auto& [rows, own, random] = histogram;
  std::string text = fmt::format("{:>14} {:>12} {:>12}\n", "cosine", "pairs", "random");
  for (int i = 0; i < kCosineBins; ++i) {
    const auto at = static_cast<size_t>(i);
    if (own.counts[at] + random.counts[at] == 0) continue;
    const double from = -1 + 2.0 * i / kCosineBins;
    text += fmt::format("{:>5.1f} to {:>5.1f} {:>12} {:>12}\n", from, from + 2.0 / kCosineBins,
                        own.counts[at], random.counts[at]);
  }
  text += fmt::format("{:>14} {:>12.4f} {:>12.4f}\n", "mean |cos|", own.mean_absolute,
                      random.mean_absolute);
  text += fmt::format("{:>14} {:>12.4f} {:>12.4f}\n", "largest", own.largest, random.largest);
  return text + fmt::format("pairs of {} rows", rows);
}

std::vector<SplittingRow> feature_splitting(const at::Tensor& a_nd, const at::Tensor& b_nd) {
  const bool swapped = a_nd.size(0) > b_nd.size(0);
  const at::Tensor narrow = unit_rows(swapped ? b_nd : a_nd);
  const at::Tensor wide = unit_rows(swapped ? a_nd : b_nd);
  std::vector<float> cosine;
  std::vector<int64_t> parent;
  for (int64_t from = 0; from < wide.size(0); from += kBlockRows) {
    const int64_t count = std::min(kBlockRows, wide.size(0) - from);
    const auto [best, place] = at::mm(wide.narrow(0, from, count), narrow.t()).max(1);
    cosine.insert(cosine.end(), best.const_data_ptr<float>(), best.const_data_ptr<float>() + count);
    parent.insert(parent.end(), place.const_data_ptr<int64_t>(),
                  place.const_data_ptr<int64_t>() + count);
  }
  std::vector<SplittingRow> out;
  for (const double threshold : kSplittingCosines) {
    SplittingRow row{threshold};
    std::vector<int64_t> children(static_cast<size_t>(narrow.size(0)));
    for (size_t j = 0; j < cosine.size(); ++j) {
      if (cosine[j] >= threshold)
        ++children[static_cast<size_t>(parent[j])];
      else
        ++row.orphans;
    }
    for (const int64_t count : children)
      ++row.parents[static_cast<size_t>(std::min<int64_t>(count, kChildBins - 1))];
    out.push_back(row);
  }
  return out;
}

nlohmann::ordered_json splitting_json(const std::vector<SplittingRow>& rows) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const SplittingRow& row : rows)
    json.push_back(
        {{"cosine", row.cosine}, {"parents_by_children", row.parents}, {"orphans", row.orphans}});
  return json;
}

std::string splitting_text(const std::vector<SplittingRow>& rows) {
  std::string text =
      "latents of the narrower dictionary by how many of the wider one are nearest to them:\n";
  text += fmt::format("{:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>10}\n", "cosine", "0", "1", "2", "3",
                      "4+", "orphans");
  for (const SplittingRow& row : rows)
    text +=
        fmt::format("{:>7.1f}+ {:>8} {:>8} {:>8} {:>8} {:>8} {:>10}\n", row.cosine, row.parents[0],
                    row.parents[1], row.parents[2], row.parents[3], row.parents[4], row.orphans);
  return text + "orphans: latents of the wider one whose nearest row is below that cosine";
}

}  // namespace megadict
