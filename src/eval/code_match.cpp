// Latents of two dictionaries matched by their codes on the same rows (comparison.h).
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/error.h"
#include "eval/assignment.h"
#include "eval/comparison.h"
#include "eval/evaluate.h"
#include "model/forward.h"

namespace megadict {

namespace {

constexpr int64_t kMostPairs = int64_t{1} << 28;  // 2 GiB of correlations

// All codes of a dictionary on some rows.
struct SparseRows {
  int64_t n = 0;
  std::vector<int64_t> start = {0};
  std::vector<int32_t> latent;
  std::vector<float> value;
  int64_t rows() const { return static_cast<int64_t>(start.size()) - 1; }
};

void append(SparseRows& to, const Codes& codes, int64_t rows) {
  const auto* start = codes.row_start.const_data_ptr<int64_t>();
  const int64_t before = to.start.back();
  for (int64_t t = 1; t <= rows; ++t) to.start.push_back(before + start[t]);
  if (codes.nnz() == 0) return;
  const auto* latent = codes.latent.const_data_ptr<int32_t>();
  const auto* value = codes.value.const_data_ptr<float>();
  to.latent.insert(to.latent.end(), latent, latent + start[rows]);
  to.value.insert(to.value.end(), value, value + start[rows]);
}

SparseRows codes_of(const Mesh& mesh, const Dictionary& dictionary,
                    const Normalization& normalization, const ShardIndex& data, int64_t rows,
                    int64_t batch_rows) {
  SparseRows out;
  out.n = dictionary.n;
  std::vector<int64_t> ids;
  for (int64_t begin = 0; begin < rows; begin += batch_rows) {
    ids.resize(static_cast<size_t>(std::min(batch_rows, rows - begin)));
    std::iota(ids.begin(), ids.end(), begin);
    const Rows read = gather_rows(mesh, read_owned(mesh, data, ids), dictionary.d, normalization,
                                  at::Device(at::kCPU));
    append(out, encode_rows(mesh, dictionary, read, {}).codes, read.real_rows());
  }
  return out;
}

// Of a latent over the rows.
struct Moments {
  std::vector<double> mean, sd;  // sd 0 where the value never changes
};

Moments moments_of(const SparseRows& codes) {
  Moments out;
  const auto n = static_cast<size_t>(codes.n);
  const auto rows = static_cast<double>(codes.rows());
  std::vector<double> sum(n), square(n);
  for (size_t e = 0; e < codes.value.size(); ++e) {
    const double z = codes.value[e];
    sum[static_cast<size_t>(codes.latent[e])] += z;
    square[static_cast<size_t>(codes.latent[e])] += z * z;
  }
  for (size_t j = 0; j < n; ++j) {
    const double mean = sum[j] / rows, variance = square[j] / rows - mean * mean;
    out.mean.push_back(mean);
    out.sd.push_back(variance > 1e-12 * square[j] / rows ? std::sqrt(variance) : 0);
  }
  return out;
}

// |Pearson| of every latent of a with every one of b, whose rows are `shift` further on.
std::vector<double> correlations(const SparseRows& a, const SparseRows& b, const Moments& of_a,
                                 const Moments& of_b, int64_t shift) {
  std::vector<double> out(static_cast<size_t>(a.n * b.n));
  const int64_t rows = a.rows();
  for (int64_t t = 0; t < rows; ++t) {
    const auto other = static_cast<size_t>((t + shift) % rows);
    for (int64_t e = a.start[static_cast<size_t>(t)]; e < a.start[static_cast<size_t>(t) + 1];
         ++e) {
      const double z = a.value[static_cast<size_t>(e)];
      double* row = out.data() + a.latent[static_cast<size_t>(e)] * b.n;
      for (int64_t f = b.start[other]; f < b.start[other + 1]; ++f)
        row[b.latent[static_cast<size_t>(f)]] += z * b.value[static_cast<size_t>(f)];
    }
  }
  for (int64_t i = 0; i < a.n; ++i)
    for (int64_t j = 0; j < b.n; ++j) {
      const auto p = static_cast<size_t>(i), q = static_cast<size_t>(j);
      double& entry = out[static_cast<size_t>(i * b.n + j)];
      const double covariance = entry / static_cast<double>(rows) - of_a.mean[p] * of_b.mean[q];
      const double below = of_a.sd[p] * of_b.sd[q];
      entry = below > 0 ? std::abs(covariance) / below : 0;
    }
  return out;
}

// The greedy matching, the strongest pairs first: fewer are sorted than all at once.
std::vector<int64_t> greedy_in_stages(const std::vector<double>& similarity, int64_t rows,
                                      int64_t cols) {
  std::vector<int64_t> partner(static_cast<size_t>(rows), -1);
  std::vector<bool> taken(static_cast<size_t>(cols));
  std::vector<int64_t> entries;
  const auto at = [&](int64_t entry) { return similarity[static_cast<size_t>(entry)]; };
  for (const double least : {0.5, 0.1, 0.02, 0.0}) {
    entries.clear();
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < cols && partner[static_cast<size_t>(i)] < 0; ++j)
        if (!taken[static_cast<size_t>(j)] && at(i * cols + j) > least)
          entries.push_back(i * cols + j);
    std::sort(entries.begin(), entries.end(),
              [&](int64_t p, int64_t q) { return at(p) != at(q) ? at(p) > at(q) : p < q; });
    for (const int64_t entry : entries) {
      const auto i = static_cast<size_t>(entry / cols), j = static_cast<size_t>(entry % cols);
      if (partner[i] >= 0 || taken[j]) continue;
      partner[i] = static_cast<int64_t>(j);
      taken[j] = true;
    }
  }
  int64_t next = 0;  // nothing but zeros left: all equal, in order
  for (int64_t& one : partner) {
    if (one >= 0) continue;
    while (next < cols && taken[static_cast<size_t>(next)]) ++next;
    if (next < cols) one = next++;
  }
  return partner;
}

Match matched(const std::vector<double>& similarity, int64_t rows, int64_t cols) {
  Match match;
  const bool large = std::max(rows, cols) > kAssignmentLimit;
  match.method = large ? MatchMethod::greedy : MatchMethod::assignment;
  match.partner = large ? greedy_in_stages(similarity, rows, cols)
                        : best_assignment(similarity.data(), rows, cols);
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t j = match.partner[static_cast<size_t>(i)];
    match.similarity.push_back(j < 0 ? 0 : similarity[static_cast<size_t>(i * cols + j)]);
    sum += match.similarity.back();
  }
  match.mean = sum / static_cast<double>(std::min(rows, cols));
  return match;
}

}  // namespace

CodeMatch match_codes_of(const Mesh& mesh, const Dictionary& a, const Normalization& a_rows,
                         const Dictionary& b, const Normalization& b_rows, const ShardIndex& data,
                         int64_t rows, int64_t batch_rows) {
  const c10::NoGradGuard no_grad;
  if (a.n > kMostPairs / b.n)
    fail_agreed(ExitCode::usage,
                fmt::format("the codes of {} x {} pairs of latents cannot be correlated; allowed: "
                            "{} pairs",
                            a.n, b.n, kMostPairs),
                "without --data.path decoder rows are matched alone");
  CodeMatch out;
  out.rows = rows > 0 ? std::min(rows, data.rows()) : data.rows();
  if (out.rows < 2)
    fail_agreed(ExitCode::bad_data, "codes cannot be correlated on fewer than 2 rows");
  const SparseRows codes_a = codes_of(mesh, a, a_rows, data, out.rows, batch_rows);
  const SparseRows codes_b = codes_of(mesh, b, b_rows, data, out.rows, batch_rows);
  const Moments of_a = moments_of(codes_a), of_b = moments_of(codes_b);
  out.match = matched(correlations(codes_a, codes_b, of_a, of_b, 0), a.n, b.n);
  out.by_chance = matched(correlations(codes_a, codes_b, of_a, of_b, out.rows / 2), a.n, b.n).mean;
  out.pairs = std::min(a.n, b.n);
  double sum = 0;
  for (size_t i = 0; i < out.match.partner.size(); ++i) {
    const int64_t j = out.match.partner[i];
    if (j < 0 || of_a.mean[i] == 0 || of_b.mean[static_cast<size_t>(j)] == 0) continue;
    sum += out.match.similarity[i];
    ++out.pairs_alive;
  }
  out.mean_alive = out.pairs_alive > 0 ? sum / static_cast<double>(out.pairs_alive)
                                       : std::numeric_limits<double>::quiet_NaN();
  return out;
}

nlohmann::ordered_json code_match_json(const CodeMatch& match) {
  nlohmann::ordered_json json = {
      {"mcc_codes", match.match.mean}, {"mcc_codes_by_chance", match.by_chance},
      {"mcc_codes_alive", nullptr},    {"mcc_codes_pairs_alive", match.pairs_alive},
      {"mcc_codes_rows", match.rows},  {"mcc_codes_matching", name_of(match.match.method)}};
  if (match.pairs_alive > 0) json["mcc_codes_alive"] = match.mean_alive;
  return json;
}

std::string code_match_text(const CodeMatch& match) {
  return fmt::format(
      "mcc_codes  {:.4f}  mean |Pearson| of matched latents' codes on {} rows, {} pairs by {}; by "
      "chance {:.4f}\n           {:.4f}  over the {} pairs of which both fired",
      match.match.mean, match.rows, match.pairs, name_of(match.match.method), match.by_chance,
      match.mean_alive, match.pairs_alive);
}

}  // namespace megadict
