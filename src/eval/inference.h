// How far an encoder is from the best codes that its decoder allows (the amortisation gap): the
// dictionary's own codes of some rows beside those that the pursuits find (pursuit.h), and the
// error of each. Items C3 (refit), C4 to C7.
//
// Rows are as the decoder sees them: normalised, less b_dec. Atoms are the decoder's rows at unit
// length, so codes are z |w_dec row|.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "comm/mesh.h"
#include "data/normalization.h"
#include "data/shard_index.h"
#include "eval/pursuit.h"
#include "model/dictionary.h"

namespace megadict {

struct InferenceArgs {
  std::vector<const Pursuit*> methods = {};
  double lambda = 0;  // fista, lars, lars_refit; 0 = of each the one whose mean L0 is the encoder's
  int64_t rows = 2048;        // the first so many of the data set
  int64_t batch_rows = 4096;  // global, of a pass of the encoder
};

struct InferenceResult {
  std::string_view method;    // "encoder", or a pursuit's name
  int64_t k = 0;              // rounds; 0 = it takes none
  double lambda = 0;          // 0 = it takes none
  double l0 = 0, fvu = 0;     // fvu: NaN where all rows are equal
  double of_encoder = 0;      // its fvu by the encoder's
  double seconds = 0;         // of the slowest rank, per 1,000 rows of all ranks
  double search_seconds = 0;  // of the other lambdas that were tried, all rows
};

struct InferenceReport {
  int64_t rows = 0;
  std::vector<InferenceResult> results;  // the encoder's first
};

// Collective over the mesh; every rank gets the report. The rows are dealt over all ranks, and each
// rank holds all atoms: 4 n d bytes besides its shard. All but seconds has the same bits on every
// mesh. k is the encoder's mean L0, rounded, topk's own; exit 3 where no latent is active, exit 2
// where a lambda is to be chosen and no lasso has as many active codes (L0 of d or more).
InferenceReport compare_inference(const Mesh& mesh, const Dictionary& dictionary,
                                  const Normalization& normalization, const ShardIndex& data,
                                  const InferenceArgs& args);

// A table: method, k or lambda, L0, FVU, share of the encoder's FVU, seconds per 1,000 rows.
std::string inference_text(const InferenceReport& report);
// {"rows", "methods" [{"method", "k", "lambda", "l0", "fvu", "share_of_encoder_fvu",
// "seconds_per_1000_rows", "search_seconds"}]}; null for what a method does not take.
nlohmann::ordered_json inference_json(const InferenceReport& report);

}  // namespace megadict
