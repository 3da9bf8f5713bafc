// What two dictionaries of the same activations have in common beyond matched decoder rows
// (matching.h): which latents of the narrower one are split in the wider one, how their codes
// correlate on the same rows, and how close a dictionary's own rows lie.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "comm/mesh.h"
#include "data/normalization.h"
#include "data/shard_index.h"
#include "eval/matching.h"
#include "model/dictionary.h"

namespace megadict {

// Cosines of the pairs of a dictionary's decoder rows in bins of .1 from -1 to 1, and of as many
// random ones (entries N(0,1)). A dictionary of more than kHistogramRows latents: of that many,
// drawn by seed.
constexpr int kCosineBins = 20;
constexpr int64_t kHistogramRows = 8192;

struct CosineCounts {
  std::array<int64_t, kCosineBins> counts{};
  double mean_absolute = 0, largest = 0;  // of |cos|; of cos
};

struct CosineHistogram {
  int64_t rows = 0;  // that were compared
  CosineCounts own, random;
};

CosineHistogram pairwise_cosines(const at::Tensor& w_dec_nd, uint64_t seed = 0);
nlohmann::ordered_json cosines_json(const CosineHistogram& histogram);
std::string cosines_text(const CosineHistogram& histogram);

// A latent of the wider dictionary is a child of the latent of the narrower one whose decoder row
// is nearest to its own, if their cosine is at least `cosine`. Equal widths: the second is the
// wider.
constexpr int kChildBins = 5;  // 0, 1, 2, 3, 4 or more children

struct SplittingRow {
  double cosine = 0;
  std::array<int64_t, kChildBins> parents{};  // [c]: latents of the narrower one with c children
  int64_t orphans = 0;                        // latents of the wider one that are nobody's child
};

std::vector<SplittingRow> feature_splitting(const at::Tensor& a_nd, const at::Tensor& b_nd);
nlohmann::ordered_json splitting_json(const std::vector<SplittingRow>& rows);
std::string splitting_text(const std::vector<SplittingRow>& rows);

// mcc_codes: latents matched by |Pearson| of their codes on the same rows, the mean over min(n_a,
// n_b) pairs; a latent that never or always gives the same value scores 0. By chance: the same with
// b's codes of the row half of the data set away.
struct CodeMatch {
  Match match;
  double by_chance = 0;
  double mean_alive = 0;  // over pairs of which both fired; NaN without
  int64_t rows = 0, pairs = 0, pairs_alive = 0;
};

// On a mesh of one rank, which holds both whole. Exit 2 where the correlations of all pairs would
// not fit.
CodeMatch match_codes_of(const Mesh& mesh, const Dictionary& a, const Normalization& a_rows,
                         const Dictionary& b, const Normalization& b_rows, const ShardIndex& data,
                         int64_t rows, int64_t batch_rows);
nlohmann::ordered_json code_match_json(const CodeMatch& match);
std::string code_match_text(const CodeMatch& match);

}  // namespace megadict
