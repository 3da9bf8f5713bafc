// Files of OpenAI's sparse_autoencoder: one .pt. Its TopK goes with a
// normalisation of every row, which no weights can say: only its ReLU is written and read.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include "base/error.h"
#include "io/file.h"
#include "io/pt_file.h"
#include "model/foreign_files.h"

namespace megadict {
namespace {

constexpr const char* kFile = "/autoencoder.pt";
constexpr Held kHeld[] = {{"relu", "relu"}};

// `path` is the file, or a folder of our export.
std::string weights_path(const std::string& path) {
  return path.ends_with(".pt") ? path : path + kFile;
}

// The statistics that a reader asks for; nobody counted them.
void write(const PlainDictionary& folded, const ExportNote&, const std::string& folder) {
  const at::Tensor decoder_dn = folded.w_dec_nd.t().contiguous();
  const at::Tensor never = at::zeros({folded.n}, at::kLong), none = at::zeros({folded.n});
  PtToWrite what;
  what.tensors = {tensor_to_write("pre_bias", folded.b_dec_d),
                  tensor_to_write("encoder.weight", folded.w_enc_nd),
                  tensor_to_write("latent_bias", folded.b_enc_n),
                  tensor_to_write("decoder.weight", decoder_dn),
                  tensor_to_write("stats_last_nonzero", never),
                  tensor_to_write("latents_activation_frequency", none),
                  tensor_to_write("latents_mean_square", none)};
  what.texts = {{"activation", "ReLU"}};
  what.empty_dicts = {"activation_state_dict"};
  write_pt(weights_path(folder), what);
}

bool recognises(const std::string& path) {
  return file_exists(path + kFile) || (path.ends_with(".pt") && file_exists(path));
}

PlainDictionary read(const std::string& path) {
  const ForeignTensors file = open_tensors(weights_path(path));
  const auto refuse = [&](const std::string& why, const std::string& hint) {
    fail(ExitCode::bad_data, fmt::format("cannot read '{}': {}", file.path, why), hint);
  };
  const auto activation = file.texts.find("activation");
  if (activation == file.texts.end())
    refuse("it says no 'activation'",
           "a dictionary_learning file is read with the config.json in its folder");
  if (activation->second == "TopK")
    refuse("its TopK goes with a normalisation of every row, which has no counterpart here",
           "rows can be scaled by one number, not normalised one by one");
  if (activation->second != "ReLU")
    refuse(fmt::format("the activation '{}' has no counterpart here", activation->second),
           "'ReLU' can be read");
  const std::vector<int64_t> shape = file.at("encoder.weight").shape;
  if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1)
    refuse(fmt::format("'encoder.weight' is [{}]", fmt::join(shape, ",")), "");
  const int64_t n = shape[0], d = shape[1];
  expect_tensors(
      file, {"pre_bias", "encoder.weight", "latent_bias", "decoder.weight", "stats_last_nonzero",
             "latents_activation_frequency", "latents_mean_square"});
  PlainDictionary plain = make_foreign(read_tensor(file, "encoder.weight", {n, d}),
                                       read_tensor(file, "decoder.weight", {d, n}).t().contiguous(),
                                       read_tensor(file, "pre_bias", {d}));
  plain.b_enc_n = read_tensor(file, "latent_bias", {n});
  return plain;
}

}  // namespace

const Format kOpenaiFormat = {"openai",
                              "OpenAI's sparse_autoencoder: autoencoder.pt; relu",
                              kHeld,
                              /*unit_rows=*/false,
                              /*unit_only=*/false,
                              kNoLeastThreshold,
                              write,
                              recognises,
                              read};

}  // namespace megadict
