#include "model/formats.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "io/file.h"
#include "io/json_file.h"
#include "io/safetensors.h"
#include "model/tensor_views.h"
#include "support/random_dictionary.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::error_of;
using test::random_dictionary;
using test::random_rows;
using test::reconstruct;
using test::TempFolder;
using ::testing::HasSubstr;

double relative(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>() / b.abs().max().item<double>();
}

// The same codes, up to a factor of the latents, and the same reconstruction.
void expect_same_function(const SavedDictionary& a, const SavedDictionary& b, double z_factor) {
  const at::Tensor x = random_rows(a, 200, 9);
  const auto ours = reconstruct(a, x), theirs = reconstruct(b, x);
  EXPECT_TRUE(at::equal(ours.z_bn > 0, theirs.z_bn > 0));
  EXPECT_LT(relative(theirs.z_bn * z_factor, ours.z_bn), 1e-6);
  EXPECT_LT(relative(theirs.x_hat_bd, ours.x_hat_bd), 1e-6);
}

TEST(Formats, WhatIsReadBackComputesTheSame) {
  for (const Format& format : all_formats())
    for (const char* activation : {"topk", "relu", "batchtopk"})
      for (const char* decoder : {"linear", "tied"})
        for (const ExportScale scale : {ExportScale::unit, ExportScale::trained}) {
          const SavedDictionary saved = random_dictionary(activation, decoder);
          if (!format.problem(saved).empty()) continue;
          SCOPED_TRACE(std::string(format.name) + " " + activation + " " + decoder);
          const TempFolder folder;
          export_dictionary(saved, format, scale, folder / "blocks.8.hook_resid_pre");
          const SavedDictionary back = load_foreign(folder / "blocks.8.hook_resid_pre");
          EXPECT_EQ(back.hook, saved.hook);
          EXPECT_EQ(back.source_model, "gpt2");
          EXPECT_EQ(back.layer, 8);
          EXPECT_EQ(back.dictionary.config.activation, activation);
          const double s = saved.normalization.scale;
          expect_same_function(saved, back, scale == ExportScale::unit ? s : 1.0);
          const at::Tensor norms = back.dictionary.w_dec_ld.norm(2, 1);
          if (scale == ExportScale::unit && std::string(decoder) == "linear") {
            EXPECT_LT((norms - 1).abs().max().item<double>(), 1e-6);
          }
        }
}

TEST(Formats, WhoHoldsWhat) {
  const auto holds = [](const char* format, const char* activation) {
    return format_named(format).problem(random_dictionary(activation, "linear")).empty();
  };
  EXPECT_TRUE(holds("saelens", "topk"));
  EXPECT_TRUE(holds("saelens", "relu"));
  EXPECT_TRUE(holds("saelens", "batchtopk"));
  EXPECT_TRUE(holds("sparsify", "topk"));
  EXPECT_FALSE(holds("sparsify", "batchtopk"));
  EXPECT_FALSE(holds("sparsify", "relu"));
}

TEST(Formats, RefusalsSayWhyAndWhatElse) {
  const TempFolder folder;
  SavedDictionary saved = random_dictionary("relu", "linear");
  const auto refusal = [&](const char* format) {
    const Error error = error_of(
        [&] { export_dictionary(saved, format_named(format), ExportScale::unit, folder / "x"); });
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_FALSE(file_exists(folder / "x"));
    return error.line();
  };
  EXPECT_EQ(refusal("sparsify"),
            "cannot write activation 'relu' as sparsify: the format holds topk. hint: --format "
            "saelens can hold it");
  saved.dictionary.config.encoder = "mlp";
  EXPECT_EQ(refusal("sparsify"),
            "cannot write encoder 'mlp' as sparsify: the format holds one linear encoder. hint: "
            "keep the native checkpoint; no format here holds it");
  saved.dictionary.config.encoder = "linear";
  saved.dictionary.config.decoder = "deep";
  EXPECT_THAT(refusal("saelens"), HasSubstr("cannot write decoder 'deep' as saelens"));
  EXPECT_THAT(error_of([] { format_named("saelen"); }).line(), HasSubstr("mean saelens"));
  EXPECT_THAT(error_of([] { export_scale_named("big"); }).line(), HasSubstr("'unit' or 'trained'"));
}

TEST(Formats, OnlyNewOrEmptyFoldersAreWritten) {
  const TempFolder folder;
  const SavedDictionary saved = random_dictionary("topk", "linear");
  const Format& format = format_named("saelens");
  make_folders(folder / "empty");
  export_dictionary(saved, format, ExportScale::unit, (folder / "empty") + "/");
  EXPECT_TRUE(file_exists(folder / "empty/cfg.json"));
  for (const std::string& name : {folder / "empty", folder / "empty/cfg.json"}) {
    const Error error =
        error_of([&] { export_dictionary(saved, format, ExportScale::unit, name); });
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_THAT(error.line(), HasSubstr("is not an empty folder"));
  }
  export_dictionary(saved, format, ExportScale::unit, folder / "a/b/c");
  EXPECT_TRUE(file_exists(folder / "a/b/c/sae_weights.safetensors"));
}

// A writer that got something wrong: the folder must not appear.
TEST(Formats, AnExportThatReadsBackDifferentlyFails) {
  const TempFolder folder;
  const SavedDictionary saved = random_dictionary("topk", "linear");
  Format broken = format_named("saelens");
  broken.write = [](const SavedDictionary& plain, const ExportNote& note, const std::string& to) {
    SavedDictionary other = plain;
    other.dictionary.b_enc_l = plain.dictionary.b_enc_l + 1e-3;
    format_named("saelens").write(other, note, to);
  };
  const Error error =
      error_of([&] { export_dictionary(saved, broken, ExportScale::unit, folder / "out"); });
  EXPECT_EQ(error.code(), ExitCode::error);
  EXPECT_THAT(error.line(), HasSubstr("another b_enc"));
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));

  broken.write = [](const SavedDictionary& plain, const ExportNote& note, const std::string& to) {
    SavedDictionary other = plain;
    other.dictionary.config.k += 1;
    format_named("saelens").write(other, note, to);
  };
  EXPECT_THAT(
      error_of([&] { export_dictionary(saved, broken, ExportScale::unit, folder / "out"); }).line(),
      HasSubstr("another k"));
}

TEST(Formats, WeightsThatAreNotFiniteAreRefused) {
  const TempFolder folder;
  SavedDictionary saved = random_dictionary("topk", "linear");
  saved.dictionary.w_enc_ld[3][1] = std::nanf("");
  const Error error = error_of(
      [&] { export_dictionary(saved, format_named("sparsify"), ExportScale::unit, folder / "x"); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.line(), HasSubstr("W_enc"));
}

TEST(Formats, MoreThanAllLatentsAreNotSelected) {
  const TempFolder folder;
  SavedDictionary saved = random_dictionary("topk", "linear", 7, 4);
  saved.dictionary.config.k = 32;
  for (const Format& format : all_formats()) {
    const std::string to = folder / std::string(format.name);
    export_dictionary(saved, format, ExportScale::unit, to);
    EXPECT_EQ(load_foreign(to).dictionary.config.k, 7);
  }
}

// The threshold is folded like the encoder's bias, and k is not lost.
TEST(Formats, AThresholdFollowsTheScaleOfTheLatents) {
  const TempFolder folder;
  const SavedDictionary saved = random_dictionary("batchtopk", "linear");
  const Format& format = format_named("saelens");
  export_dictionary(saved, format, ExportScale::unit, folder / "unit");
  export_dictionary(saved, format, ExportScale::trained, folder / "trained");
  const Dictionary unit = load_foreign(folder / "unit").dictionary;
  EXPECT_EQ(unit.threshold, static_cast<float>(saved.dictionary.threshold / 0.37));
  EXPECT_EQ(unit.config.k, 5);
  EXPECT_EQ(load_foreign(folder / "trained").dictionary.threshold,
            static_cast<float>(saved.dictionary.threshold));
}

// How `megadict eval` and model.init_from get at them.
TEST(Formats, ShardsOfAForeignDictionaryAreLoadedLikeACheckpoint) {
  const TempFolder folder;
  const SavedDictionary saved = random_dictionary("topk", "linear");
  export_dictionary(saved, format_named("saelens"), ExportScale::trained, folder / "x");
  ASSERT_EQ(find_checkpoint(folder / "x"), folder / "x");
  const Dictionary whole = load_foreign(folder / "x").dictionary;
  for (int64_t i = 0; i < 3; ++i) {
    const Dictionary part = load_saved(folder / "x", "last", 3, i).dictionary;
    EXPECT_EQ(part.latents, shard_of(40, 3, i));
    const auto rows = [&](const at::Tensor& t) {
      return t.narrow(0, part.latents.begin, part.latents.size());
    };
    EXPECT_TRUE(at::equal(part.w_enc_ld, rows(whole.w_enc_ld)));
    EXPECT_TRUE(at::equal(part.w_dec_ld, rows(whole.w_dec_ld)));
    EXPECT_TRUE(at::equal(part.b_enc_l, rows(whole.b_enc_l)));
    EXPECT_TRUE(at::equal(part.b_dec_d, whole.b_dec_d));
  }
  EXPECT_EQ(error_of([&] { load_saved(folder / "x", "ema"); }).code(), ExitCode::usage);
}

TEST(UnitDecoderRows, KeepWhatIsDecoded) {
  SavedDictionary saved = random_dictionary("relu", "linear");
  const SavedDictionary before = folded(saved, ExportScale::unit);
  SavedDictionary unit = before;
  EXPECT_LT(unit_decoder_rows(unit.dictionary), 1e-6);
  EXPECT_TRUE(at::equal(unit.dictionary.w_enc_ld, before.dictionary.w_enc_ld));  // kept its bits

  saved.dictionary.w_dec_ld = saved.dictionary.w_dec_ld * at::arange(1, 41).unsqueeze(1);
  unit = folded(saved, ExportScale::unit);
  EXPECT_NEAR(unit_decoder_rows(unit.dictionary), 39, 1e-4);
  EXPECT_LT((unit.dictionary.w_dec_ld.norm(2, 1) - 1).abs().max().item<double>(), 1e-6);
  const at::Tensor x = random_rows(saved, 200, 9);
  EXPECT_LT(relative(reconstruct(unit, x).x_hat_bd, reconstruct(saved, x).x_hat_bd), 1e-6);

  saved.dictionary.w_dec_ld[7].zero_();
  unit = folded(saved, ExportScale::unit);
  unit_decoder_rows(unit.dictionary);
  EXPECT_EQ(unit.dictionary.w_dec_ld[7].abs().max().item<double>(), 0);
  EXPECT_TRUE(at::isfinite(unit.dictionary.w_enc_ld).all().item<bool>());
}

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
  EXPECT_THAT(refusal(), HasSubstr("cfg.json makes it"));
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
  for (const char* architecture : {"gated", "batchtopk", "temporal"})
    EXPECT_THAT(set("architecture", architecture), HasSubstr(architecture));
  for (const char* kind : {"layer_norm", "constant_norm_rescale", "covariance_whitening"})
    EXPECT_THAT(set("normalize_activations", kind), HasSubstr(kind));
  // Their default of 100 for a k that is missing is nobody's k.
  EXPECT_THAT(set("k", nullptr), HasSubstr("'k' is missing"));
  write_json(path() + "/activation_scaler.json",
             nlohmann::json{{"scaling_factor", nullptr}, {"has_whitening", true}});
  EXPECT_THAT(refusal(), HasSubstr("whitened"));
}

// jumprelu is read where it says what batchtopk can: one threshold for all latents.
TEST_P(SaelensFolder, OneThresholdForAllLatentsIsRead) {
  edit_config([](nlohmann::json& config) { config["architecture"] = "jumprelu"; });
  EXPECT_THAT(refusal(), HasSubstr("threshold"));
  with_tensor("threshold", at::full({40}, 0.75f));
  SavedDictionary expected = folded(saved_, ExportScale::unit);
  expected.dictionary.config.activation = "batchtopk";
  expected.dictionary.threshold = 0.75;
  expect_same_function(expected, load_foreign(path()), 1.0);
  with_tensor("threshold", at::full({40}, -0.5f));  // below zero it is relu
  expected.dictionary.threshold = 0;
  expect_same_function(expected, load_foreign(path()), 1.0);
  with_tensor("threshold", at::arange(40).to(at::kFloat));
  EXPECT_THAT(refusal(), HasSubstr("a threshold of its own for each latent"));
  with_tensor("threshold", at::full({40}, std::nanf("")));
  EXPECT_THAT(refusal(), HasSubstr("threshold"));
}

TEST_P(SaelensFolder, SelectionByDecoderNormBecomesWeights) {
  // Free decoder norms; the file's rule selects on h |w| and decodes z / |w|.
  const at::Tensor norms = (0.5 + at::arange(40, at::kDouble) / 20).unsqueeze(1);
  const at::Tensor w_dec = saved_.dictionary.w_dec_ld.to(at::kDouble) * norms;
  with_tensor("W_dec", w_dec.to(at::kFloat).contiguous());
  edit_config([](nlohmann::json& config) { config["rescale_acts_by_decoder_norm"] = true; });
  SavedDictionary expected = folded(saved_, ExportScale::unit);
  expected.dictionary.w_enc_ld = (expected.dictionary.w_enc_ld * norms).to(at::kFloat);
  expected.dictionary.b_enc_l = (expected.dictionary.b_enc_l * norms.squeeze(1)).to(at::kFloat);
  expect_same_function(expected, load_foreign(path()), 1.0);
}

TEST_P(SaelensFolder, AnInputWithoutBiasBecomesAnEncoderBias) {
  edit_config([](nlohmann::json& config) { config["apply_b_dec_to_input"] = false; });
  SavedDictionary expected = folded(saved_, ExportScale::unit);
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
