// How far two dictionaries hold the same latents: matched pairs of rows and what they score.
// Everything here is for one process that holds both dictionaries whole.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace megadict {

// Of two rows, in absolute value. pearson: means over the entries removed; 0 where a row's variance
// is below 1e-12 or not finite. cosine: 0 where a row is zero or not finite.
enum class Similarity { pearson, cosine };

// automatic: assignment while neither side has more than kAssignmentLimit rows, greedy above.
enum class MatchMethod { automatic, assignment, greedy };
constexpr int64_t kAssignmentLimit = 4096;

struct Match {
  MatchMethod method = MatchMethod::assignment;  // the one that was used
  std::vector<int64_t> partner;                  // for each row of a: a row of b, -1 = left over
  std::vector<double> similarity;                // of each row of a with its partner, 0 without
  double mean = 0;                               // over the min(n_a, n_b) pairs; NaN without pairs
};

// a [n_a, m], b [n_b, m], any float dtype, same device. assignment maximises the sum of
// similarities; greedy takes the most similar pair left, again and again, found as mutual nearest
// rows in blocks, so that no n_a x n_b matrix is stored. Exit 3 on unequal widths.
Match match_rows(const at::Tensor& a, const at::Tensor& b, Similarity similarity,
                 MatchMethod method = MatchMethod::automatic);

// Mean over rows of a of the largest cosine (signed) with a row of b; directed.
double mmcs(const at::Tensor& a, const at::Tensor& b);

// mcc = match_rows(..., pearson).mean over the entries of decoder rows; mcc_cosine with cosine.
// Each beside what a random dictionary (rows N(0,1)) of b's shape scores against a: with few
// entries that is far from 0.
struct DictionaryScores {
  double mcc = 0, mcc_cosine = 0;
  double mmcs_ab = 0, mmcs_ba = 0;
  double random_mcc = 0, random_mcc_cosine = 0;
  int64_t pairs = 0;
  MatchMethod method = MatchMethod::assignment;
};

// a: the true, or the first, dictionary's decoder rows; b: the learned, or the second, one's.
DictionaryScores compare_dictionaries(const at::Tensor& a_nd, const at::Tensor& b_nd,
                                      uint64_t seed = 0);

// mcc_codes: the same over samples. Codes [samples, n_a] and [samples, n_b] of the same samples.
Match match_codes(const at::Tensor& codes_a, const at::Tensor& codes_b,
                  MatchMethod method = MatchMethod::automatic);

std::string_view name_of(MatchMethod method);
nlohmann::ordered_json scores_json(const DictionaryScores& scores);
// One line a score, with its definition and the random baseline beside it.
std::string scores_text(const DictionaryScores& scores);

}  // namespace megadict
