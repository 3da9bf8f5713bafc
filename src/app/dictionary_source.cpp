#include "app/dictionary_source.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "app/field.h"
#include "app/together.h"
#include "base/error.h"
#include "io/file.h"
#include "model/formats.h"

namespace megadict {

namespace {

bool is_foreign(const std::string& path, const std::string& weights) {
  return weights == "last" && foreign_format(path) != nullptr;
}

}  // namespace

std::string dictionary_folder(const std::string& path, const std::string& weights,
                              Communicator& world) {
  return rank_zero_finds(
      world, [&] { return is_foreign(path, weights) ? path : find_checkpoint(path); },
      "dictionary");
}

SavedDictionary load_shard(const std::string& folder, const std::string& weights, int parts,
                           int index) {
  if (is_foreign(folder, weights)) return shard_of_whole(load_foreign(folder), parts, index);
  return load_saved(folder, weights, parts, index);
}

SavedDictionary shard_of_whole(SavedDictionary saved, int parts, int index) {
  Dictionary& d = saved.dictionary;
  const bool tied = d.tied();
  d.latents = shard_of(d.n, parts, index);
  const auto mine = [&](const at::Tensor& t) {
    return t.narrow(0, d.latents.begin, d.latents.size()).contiguous();
  };
  d.w_enc_ld = mine(d.w_enc_ld);
  d.w_dec_ld = tied ? d.w_enc_ld : mine(d.w_dec_ld);
  d.b_enc_l = mine(d.b_enc_l);
  for (at::Tensor& extra : d.extra_l) extra = mine(extra);
  return saved;
}

std::string held_out(const std::string& path) {
  return folder_exists(path + "/eval") ? path + "/eval" : path;
}

void refuse_other_width(const std::string& folder, int64_t width, const std::string& data_path,
                        const ShardIndex& data) {
  if (width == data.width()) return;
  fail_agreed(ExitCode::bad_data,
              fmt::format("the dictionary in {} has width {}, the rows of {} have {}",
                          in_quotes(folder), width, in_quotes(data_path), data.width()));
}

nlohmann::ordered_json judgement_json(const MetricReport& report, const std::string& folder,
                                      const std::string& data_path, const SavedDictionary& saved) {
  nlohmann::ordered_json json = metrics_json(report);
  json["checkpoint"] = folder;
  json["data"] = data_path;
  json["step"] = saved.step;
  json["tokens"] = saved.tokens;
  json["n_latents"] = saved.dictionary.n;
  json["d"] = saved.dictionary.d;
  return json;
}

}  // namespace megadict
