// Folders of other trainers: what is damaged, odd or old in them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "io/json_file.h"
#include "io/safetensors.h"
#include "model/formats.h"
#include "model/tensor_views.h"
#include "support/plain_dictionary.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::error_of;
using test::expect_same_function;
using test::folded_saved;
using test::random_dictionary;
using test::TempFolder;
using ::testing::HasSubstr;

// A folder of each format whose files the tests below damage.
class ForeignFolder : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    saved_ = random_dictionary("topk", "linear");
    export_dictionary(saved_, format_named(GetParam()), ExportScale::unit, path());
  }
  std::string path() const { return folder_ / "h.3.mlp"; }
  std::string weights() const {
    return path() +
           (std::string(GetParam()) == "saelens" ? "/sae_weights.safetensors" : "/sae.safetensors");
  }
  template <class Edit>
  void edit_config(Edit&& edit) {
    nlohmann::json config = read_json(path() + "/cfg.json");
    edit(config);
    write_json(path() + "/cfg.json", config);
  }
  std::string refusal() {
    const Error error = error_of([&] { load_foreign(path()); });
    EXPECT_EQ(error.code(), ExitCode::bad_data);
    return error.line();
  }
  // The tensors as they are, one replaced or added.
  void with_tensor(const std::string& name, const at::Tensor& tensor) {
    std::vector<TensorToWrite> out;
    std::vector<std::vector<float>> kept;
    {
      const auto file = SafetensorsFile::open(weights());
      kept.reserve(file.entries().size());
      for (const SafetensorsEntry& entry : file.entries()) {
        if (entry.name == name) continue;
        kept.push_back(file.read_as_float(entry));
        out.push_back({entry.name, entry.shape,
                       view_of(kept.back().data(), static_cast<int64_t>(kept.back().size()))});
      }
    }
    if (tensor.defined()) out.push_back({name, tensor.sizes().vec(), view_of(tensor)});
    write_safetensors(weights(), out);
  }

  TempFolder folder_;
  SavedDictionary saved_;
};

TEST_P(ForeignFolder, DamagedFilesAreNamed) {
  with_tensor("surprise", at::zeros({3}));
  EXPECT_THAT(refusal(), HasSubstr("surprise"));
  with_tensor("surprise", {});
  with_tensor("b_dec", at::zeros({5}));
  EXPECT_THAT(refusal(), HasSubstr("'b_dec' is [5]"));
  with_tensor("b_dec", {});
  EXPECT_THAT(refusal(), HasSubstr("b_dec"));
  with_tensor("b_dec", at::full({12}, std::nanf("")));
  EXPECT_THAT(refusal(), HasSubstr("not finite"));
  with_tensor("b_dec", at::zeros({12}, at::kLong));
  EXPECT_THAT(refusal(), HasSubstr("not a float tensor"));
  std::ofstream(path() + "/cfg.json") << "[1, 2";
  EXPECT_THAT(refusal(), HasSubstr("cfg.json"));
  remove_file(path() + "/cfg.json");
  EXPECT_THAT(refusal(), HasSubstr("no dictionary of a known format"));
}

TEST_P(ForeignFolder, SettingsOfTheWrongKindAreNamed) {
  for (const auto& [value, text] :
       std::vector<std::pair<nlohmann::json, std::string>>{{4.0, "'k' is not an integer"},
                                                           {"4", "'k' is not an integer"},
                                                           {0, "'k' is 0"},
                                                           {41, "'k' is above"},
                                                           {-1, "'k' is -1"}}) {
    edit_config([&](nlohmann::json& config) { config["k"] = value; });
    EXPECT_THAT(refusal(), HasSubstr(text));
  }
  edit_config([](nlohmann::json& config) {
    config["k"] = 5;
    config["d_in"] = 13;
  });
  EXPECT_THAT(refusal(), HasSubstr("the settings make it"));
  edit_config([](nlohmann::json& config) { config["d_in"] = nullptr; });
  EXPECT_THAT(refusal(), HasSubstr("'d_in' is missing"));
  edit_config([](nlohmann::json& config) { config["d_in"] = int64_t{1} << 40; });
  EXPECT_THAT(refusal(), HasSubstr("not a size"));
}

INSTANTIATE_TEST_SUITE_P(All, ForeignFolder, ::testing::Values("saelens", "sparsify"),
                         [](const auto& one) { return std::string(one.param); });

class SaelensFolder : public ForeignFolder {};
INSTANTIATE_TEST_SUITE_P(One, SaelensFolder, ::testing::Values("saelens"));

TEST_P(SaelensFolder, WhatHasNoCounterpartIsRefused) {
  const auto set = [&](const char* key, const nlohmann::json& value) {
    edit_config([&](nlohmann::json& config) { config[key] = value; });
    const std::string line = refusal();
    edit_config([&](nlohmann::json& config) {
      config["architecture"] = "topk";
      config["normalize_activations"] = "none";
      config["k"] = 5;
    });
    return line;
  };
  EXPECT_THAT(set("architecture", "temporal"), HasSubstr("temporal"));
  for (const char* kind : {"layer_norm", "constant_norm_rescale", "covariance_whitening"})
    EXPECT_THAT(set("normalize_activations", kind), HasSubstr(kind));
  // Their default of 100 for a k that is missing is nobody's k.
  EXPECT_THAT(set("k", nullptr), HasSubstr("'k' is missing"));
  write_json(path() + "/activation_scaler.json",
             nlohmann::json{{"scaling_factor", nullptr}, {"has_whitening", true}});
  EXPECT_THAT(refusal(), HasSubstr("whitened"));
}

// One threshold for all latents is batchtopk's.
TEST_P(SaelensFolder, ThresholdsAreRead) {
  edit_config([](nlohmann::json& config) { config["architecture"] = "jumprelu"; });
  EXPECT_THAT(refusal(), HasSubstr("threshold"));
  with_tensor("threshold", at::full({40}, 0.75f));
  SavedDictionary expected = folded_saved(saved_);
  expected.dictionary.config.activation = "batchtopk";
  expected.dictionary.threshold = 0.75;
  expect_same_function(expected, load_foreign(path()), 1.0);
  with_tensor("threshold", at::full({40}, -0.5f));  // below zero it is relu
  expected.dictionary.threshold = 0;
  expect_same_function(expected, load_foreign(path()), 1.0);
  const at::Tensor each = at::arange(-5, 35).to(at::kFloat) * 0.1;
  with_tensor("threshold", each);
  expected.dictionary.config.activation = "jumprelu";
  expected.dictionary.extra_l = {each.clamp_min(0)};  // ReLU stays
  expect_same_function(expected, load_foreign(path()), 1.0);
  with_tensor("threshold", at::full({40}, std::nanf("")));
  EXPECT_THAT(refusal(), HasSubstr("threshold"));
}

TEST_P(SaelensFolder, SelectionByDecoderNormBecomesWeights) {
  // Free decoder norms; the file's rule selects on h |w| and decodes z / |w|.
  const at::Tensor norms = (0.5 + at::arange(40, at::kDouble) / 20).unsqueeze(1);
  const at::Tensor w_dec = saved_.dictionary.w_dec_ld.to(at::kDouble) * norms;
  with_tensor("W_dec", w_dec.to(at::kFloat).contiguous());
  edit_config([](nlohmann::json& config) { config["rescale_acts_by_decoder_norm"] = true; });
  SavedDictionary expected = folded_saved(saved_);
  expected.dictionary.w_enc_ld = (expected.dictionary.w_enc_ld * norms).to(at::kFloat);
  expected.dictionary.b_enc_l = (expected.dictionary.b_enc_l * norms.squeeze(1)).to(at::kFloat);
  expect_same_function(expected, load_foreign(path()), 1.0);
}

TEST_P(SaelensFolder, AnInputWithoutBiasBecomesAnEncoderBias) {
  edit_config([](nlohmann::json& config) { config["apply_b_dec_to_input"] = false; });
  SavedDictionary expected = folded_saved(saved_);
  Dictionary& dictionary = expected.dictionary;
  dictionary.b_enc_l = dictionary.b_enc_l + at::mv(dictionary.w_enc_ld, dictionary.b_dec_d);
  expect_same_function(expected, load_foreign(path()), 1.0);
}

TEST_P(SaelensFolder, AFactorThatWasNotFoldedInIsKept) {
  write_json(path() + "/activation_scaler.json",
             nlohmann::json{{"scaling_factor", 0.25}, {"has_whitening", false}});
  EXPECT_EQ(load_foreign(path()).normalization.scale, 0.25);
}

TEST_P(SaelensFolder, FilesFromBeforeVersionSix) {
  write_json(path() + "/cfg.json", nlohmann::json{{"architecture", "standard"},
                                                  {"d_in", 12},
                                                  {"d_sae", 40},
                                                  {"dtype", "torch.float32"},
                                                  {"activation_fn_str", "topk"},
                                                  {"activation_fn_kwargs", {{"k", 5}}},
                                                  {"hook_name", "blocks.2.mlp"},
                                                  {"normalize_activations", false}});
  with_tensor("scaling_factor", at::ones({40}));
  const SavedDictionary back = load_foreign(path());
  EXPECT_EQ(back.dictionary.config.k, 5);
  EXPECT_EQ(back.layer, 2);
  expect_same_function(saved_, back, saved_.normalization.scale);
  with_tensor("scaling_factor", at::full({40}, 2.0f));
  EXPECT_THAT(refusal(), HasSubstr("scaling_factor"));
}

class SparsifyFolder : public ForeignFolder {};
INSTANTIATE_TEST_SUITE_P(One, SparsifyFolder, ::testing::Values("sparsify"));

TEST_P(SparsifyFolder, LatentsMayFollowFromTheExpansionFactor) {
  SavedDictionary saved = random_dictionary("topk", "linear", 48, 12);
  export_dictionary(saved, format_named("sparsify"), ExportScale::unit, folder_ / "layers.4");
  const std::string config = folder_ / "layers.4/cfg.json";
  nlohmann::json json = read_json(config);
  EXPECT_EQ(json["num_latents"], 48);
  json["num_latents"] = 0;
  write_json(config, json);
  const SavedDictionary back = load_foreign(folder_ / "layers.4");
  EXPECT_EQ(back.dictionary.n, 48);
}

TEST_P(SparsifyFolder, WhatHasNoCounterpartIsRefused) {
  for (const char* flag : {"transcode", "skip_connection"}) {
    edit_config([&](nlohmann::json& config) { config[flag] = true; });
    EXPECT_THAT(refusal(), HasSubstr("transcoder"));
    edit_config([&](nlohmann::json& config) { config[flag] = false; });
  }
  edit_config([](nlohmann::json& config) { config["activation"] = "groupmax"; });
  EXPECT_THAT(refusal(), HasSubstr("groupmax"));
}

}  // namespace
}  // namespace megadict
