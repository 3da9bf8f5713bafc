#include "eval/matching.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/philox.h"
#include "eval/assignment.h"

namespace megadict {
namespace {

constexpr int64_t kBlockEntries = int64_t{1} << 24;  // of a block of similarities

// Rows prepared so that a similarity is a dot product: centred (pearson), unit, or zero where the
// similarity is defined as 0.
at::Tensor prepared(const at::Tensor& rows, Similarity similarity, at::ScalarType dtype) {
  at::Tensor out = at::empty(rows.sizes(), rows.options().dtype(dtype));
  const int64_t step = std::max<int64_t>(1, kBlockEntries / std::max<int64_t>(1, rows.size(1)));
  for (int64_t from = 0; from < rows.size(0); from += step) {
    const int64_t count = std::min(step, rows.size(0) - from);
    at::Tensor block = rows.narrow(0, from, count).to(at::kDouble);
    at::Tensor usable;
    if (similarity == Similarity::pearson) {
      block = block - block.mean(1, true);
      usable = block.square().mean(1, true) >= 1e-12;
    } else {
      usable = block.square().sum(1, true) > 0;
    }
    const at::Tensor norm = block.norm(2, {1}, true);
    usable = usable.logical_and(at::isfinite(norm));
    out.narrow(0, from, count)
        .copy_(at::where(usable, block / norm, at::zeros({}, block.options())));
  }
  return out;
}

Match assign(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor similarity = at::mm(a, b.t()).abs().cpu().contiguous();
  Match match;
  match.partner = best_assignment(similarity.const_data_ptr<double>(), a.size(0), b.size(0));
  return match;
}

struct Nearest {
  at::Tensor of_rows;     // for each row of a the most similar row of b, the first of equals
  at::Tensor of_columns;  // and the reverse
  double largest = 0;
};

Nearest nearest_rows(const at::Tensor& a, const at::Tensor& b) {
  Nearest nearest;
  nearest.of_rows = at::empty({a.size(0)}, a.options().dtype(at::kLong));
  nearest.of_columns = at::zeros({b.size(0)}, a.options().dtype(at::kLong));
  at::Tensor best = at::full({b.size(0)}, -1.0, a.options());
  const int64_t step = std::max<int64_t>(1, kBlockEntries / b.size(0));
  for (int64_t from = 0; from < a.size(0); from += step) {
    const int64_t count = std::min(step, a.size(0) - from);
    const at::Tensor block = at::mm(a.narrow(0, from, count), b.t()).abs_();
    nearest.of_rows.narrow(0, from, count).copy_(std::get<1>(block.max(1)));
    const auto [value, row] = block.max(0);
    const at::Tensor better = value > best;  // strictly: the first of equals stays
    best = at::where(better, value, best);
    nearest.of_columns = at::where(better, row + from, nearest.of_columns);
  }
  nearest.largest = best.max().item<double>();
  return nearest;
}

// The rows of a tensor that `keep` (a mask) selects, as positions.
at::Tensor positions(const at::Tensor& keep) {
  return keep.nonzero().squeeze(1);
}

// A pair that is nearest in both directions would be taken by the greedy rule before either of its
// rows could go elsewhere, and the most similar pair left is always one: rounds of mutual nearest
// pairs give the greedy matching.
Match greedy(const at::Tensor& a, const at::Tensor& b) {
  Match match;
  match.partner.assign(static_cast<size_t>(a.size(0)), -1);
  const auto longs = a.options().dtype(at::kLong);
  at::Tensor rows = at::arange(a.size(0), longs), columns = at::arange(b.size(0), longs);
  const auto pair_up = [&](const at::Tensor& r, const at::Tensor& c) {
    const at::Tensor row = r.cpu().contiguous(), column = c.cpu().contiguous();
    for (int64_t i = 0; i < std::min(row.numel(), column.numel()); ++i)
      match.partner[static_cast<size_t>(row.const_data_ptr<int64_t>()[i])] =
          column.const_data_ptr<int64_t>()[i];
  };
  while (rows.numel() > 0 && columns.numel() > 0) {
    const Nearest nearest = nearest_rows(a.index_select(0, rows), b.index_select(0, columns));
    if (!(nearest.largest > 0)) {  // nothing but zeros left: all equal, in order
      pair_up(rows, columns);
      break;
    }
    const at::Tensor mutual =
        nearest.of_columns.index_select(0, nearest.of_rows).eq(at::arange(rows.numel(), longs));
    const at::Tensor row = positions(mutual), column = nearest.of_rows.index_select(0, row);
    pair_up(rows.index_select(0, row), columns.index_select(0, column));
    rows = rows.index_select(0, positions(mutual.logical_not()));
    at::Tensor free = at::ones({columns.numel()}, longs);
    free.index_fill_(0, column, 0);
    columns = columns.index_select(0, positions(free));
  }
  return match;
}

void score(Match& match, const at::Tensor& a, const at::Tensor& b) {
  match.similarity.assign(match.partner.size(), 0.0);
  double sum = 0;
  int64_t pairs = 0;
  for (size_t i = 0; i < match.partner.size(); ++i) {
    if (match.partner[i] < 0) continue;
    const at::Tensor row = a.select(0, static_cast<int64_t>(i)).to(at::kDouble);
    const at::Tensor other = b.select(0, match.partner[i]).to(at::kDouble);
    match.similarity[i] = std::abs(at::dot(row, other).item<double>());
    sum += match.similarity[i];
    ++pairs;
  }
  match.mean =
      pairs > 0 ? sum / static_cast<double>(pairs) : std::numeric_limits<double>::quiet_NaN();
}

at::Tensor random_rows(const at::Tensor& like, uint64_t seed, uint64_t draw) {
  at::Tensor rows = at::empty(like.sizes(), at::TensorOptions().dtype(at::kDouble));
  auto* out = rows.mutable_data_ptr<double>();
  const Rng rng{seed, Purpose::random_baseline, draw};
  for (int64_t i = 0; i < rows.numel(); i += 2) {
    const auto pair = rng.normals(static_cast<uint64_t>(i / 2));
    out[i] = pair[0];
    if (i + 1 < rows.numel()) out[i + 1] = pair[1];
  }
  return rows.to(like.options());
}

}  // namespace

std::string_view name_of(MatchMethod method) {
  return method == MatchMethod::greedy       ? "greedy"
         : method == MatchMethod::assignment ? "assignment"
                                             : "automatic";
}

Match match_rows(const at::Tensor& a, const at::Tensor& b, Similarity similarity,
                 MatchMethod method) {
  if (a.dim() != 2 || b.dim() != 2 || a.size(1) != b.size(1))
    fail_agreed(ExitCode::bad_data,
                fmt::format("cannot match rows {} wide with rows {} wide", a.size(-1), b.size(-1)),
                "both dictionaries must be of the same activations");
  const bool large = std::max(a.size(0), b.size(0)) > kAssignmentLimit;
  if (method == MatchMethod::automatic)
    method = large ? MatchMethod::greedy : MatchMethod::assignment;
  const auto dtype = large ? at::kFloat : at::kDouble;
  const at::Tensor rows_a = prepared(a, similarity, dtype), rows_b = prepared(b, similarity, dtype);
  const bool some = a.size(0) > 0 && b.size(0) > 0;
  Match match;
  if (!some) {
    match.partner.assign(static_cast<size_t>(a.size(0)), -1);
  } else if (method == MatchMethod::assignment) {
    match = assign(rows_a.to(at::kDouble), rows_b.to(at::kDouble));
  } else {
    match = greedy(rows_a, rows_b);
  }
  match.method = method;
  score(match, rows_a, rows_b);
  return match;
}

double mmcs(const at::Tensor& a, const at::Tensor& b) {
  if (a.size(0) == 0 || b.size(0) == 0) return std::numeric_limits<double>::quiet_NaN();
  const at::Tensor rows_a = prepared(a, Similarity::cosine, at::kFloat);
  const at::Tensor rows_b = prepared(b, Similarity::cosine, at::kFloat);
  const int64_t step = std::max<int64_t>(1, kBlockEntries / b.size(0));
  double sum = 0;
  for (int64_t from = 0; from < a.size(0); from += step) {
    const int64_t count = std::min(step, a.size(0) - from);
    const at::Tensor block = at::mm(rows_a.narrow(0, from, count), rows_b.t());
    sum += std::get<0>(block.max(1)).to(at::kDouble).sum().item<double>();
  }
  return sum / static_cast<double>(a.size(0));
}

DictionaryScores compare_dictionaries(const at::Tensor& a_nd, const at::Tensor& b_nd,
                                      uint64_t seed) {
  const Match match = match_rows(a_nd, b_nd, Similarity::pearson);
  DictionaryScores scores;
  scores.mcc = match.mean;
  scores.mcc_cosine = match_rows(a_nd, b_nd, Similarity::cosine).mean;
  scores.mmcs_ab = mmcs(a_nd, b_nd);
  scores.mmcs_ba = mmcs(b_nd, a_nd);
  scores.pairs = std::min(a_nd.size(0), b_nd.size(0));
  scores.method = match.method;
  // A small dictionary's baseline depends on the draw: average some. A large one's does not.
  const int draws = scores.pairs <= 256 ? 10 : 1;
  for (int draw = 0; draw < draws; ++draw) {
    const at::Tensor random = random_rows(b_nd, seed, static_cast<uint64_t>(draw));
    scores.random_mcc += match_rows(a_nd, random, Similarity::pearson).mean / draws;
    scores.random_mcc_cosine += match_rows(a_nd, random, Similarity::cosine).mean / draws;
  }
  return scores;
}

Match match_codes(const at::Tensor& codes_a, const at::Tensor& codes_b, MatchMethod method) {
  return match_rows(codes_a.t(), codes_b.t(), Similarity::pearson, method);
}

nlohmann::ordered_json scores_json(const DictionaryScores& scores) {
  return {{"mcc", scores.mcc},
          {"random_mcc", scores.random_mcc},
          {"mcc_cosine", scores.mcc_cosine},
          {"random_mcc_cosine", scores.random_mcc_cosine},
          {"mmcs_ab", scores.mmcs_ab},
          {"mmcs_ba", scores.mmcs_ba},
          {"pairs", scores.pairs},
          {"matching", name_of(scores.method)}};
}

std::string scores_text(const DictionaryScores& scores) {
  std::string text = fmt::format("{} pairs, matched by {}\n", scores.pairs, name_of(scores.method));
  text += fmt::format(
      "mcc        {:.4f}  mean |Pearson| over the entries of matched rows; random {:.4f}\n",
      scores.mcc, scores.random_mcc);
  text += fmt::format("mcc_cosine {:.4f}  mean |cos| of matched rows; random {:.4f}\n",
                      scores.mcc_cosine, scores.random_mcc_cosine);
  text += fmt::format(
      "mmcs       {:.4f}  mean over the first's rows of the largest cosine; reverse {:.4f}\n",
      scores.mmcs_ab, scores.mmcs_ba);
  return text;
}

}  // namespace megadict
