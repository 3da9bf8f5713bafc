#include "app/truth.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "app/field.h"
#include "base/error.h"
#include "base/log.h"
#include "eval/evaluate.h"
#include "eval/matching.h"
#include "io/safetensors.h"
#include "model/hidden.h"

namespace megadict {

at::Tensor read_truth(const std::string& folder, int64_t width) {
  const SafetensorsFile file = SafetensorsFile::open(folder + "/truth.safetensors");
  const SafetensorsEntry& entry = file.at("W_dec");
  if (entry.shape.size() != 2 || (width > 0 && entry.shape[1] != width))
    fail(ExitCode::bad_data,
         fmt::format("W_dec of {} is [{}], the data have width {}", in_quotes(file.path()),
                     fmt::join(entry.shape, ", "), width));
  return at::tensor(file.read_as_float(entry)).view(entry.shape);
}

void refuse_deep_decoder(const Dictionary& dictionary, std::string_view what) {
  if (has_back(dictionary.config))
    fail_agreed(
        ExitCode::usage,
        fmt::format("{} with model.decoder = deep: the rows in front of its hidden layer are "
                    "no directions of the data",
                    what));
}

nlohmann::ordered_json judge_against_truth(const Mesh& mesh, const Dictionary& dictionary,
                                           const at::Tensor& truth_nd) {
  refuse_deep_decoder(dictionary, "eval.truth");
  const at::Tensor learned = at::tensor(gather_decoder(mesh, dictionary)).view({-1, dictionary.d});
  const DictionaryScores scores = compare_dictionaries(truth_nd, learned);
  say(scores_text(scores));
  return scores_json(scores);
}

}  // namespace megadict
