#include "train/threshold.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "eval/evaluate.h"
#include "model/activations.h"
#include "model/forward.h"

namespace megadict {

// The field's decay of .999 from step 10,000 on, while a shorter run does not remember how it
// started.
void update_threshold(double least, TrainState& state) {
  if (least <= 0) return;
  double& threshold = state.dictionary.threshold;
  const double weight = std::max(1e-3, 10 / (static_cast<double>(state.step) + 10));
  threshold += (threshold > 0 ? weight : 1) * (least - threshold);
}

double calibrated_threshold(const Mesh& mesh, const ShardIndex& data, std::span<const int64_t> rows,
                            int64_t batch_rows, const TrainState& state) {
  const Dictionary& dictionary = state.dictionary;
  if (!activation_named(dictionary.config.activation).whole_batch) return dictionary.threshold;
  const size_t batch = std::min(rows.size(), static_cast<size_t>(batch_rows));
  double sum = 0;
  int64_t batches = 0;
  for (size_t first = 0; first + batch <= rows.size(); first += batch) {
    const MicroBatch micro = read_owned(mesh, data, rows.subspan(first, batch));
    const Rows gathered =
        gather_rows(mesh, micro, dictionary.d, state.normalization, dictionary.w_enc_ld.device());
    const double least = encode_rows(mesh, dictionary, gathered, {EncodeFor::training}).least;
    if (least <= 0) continue;
    sum += least;
    ++batches;
  }
  return batches > 0 ? sum / static_cast<double>(batches) : dictionary.threshold;
}

}  // namespace megadict
