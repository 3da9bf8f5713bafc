#include "model/formats.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "io/file.h"
#include "support/plain_dictionary.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::error_of;
using test::expect_same_function;
using test::folded_saved;
using test::random_dictionary;
using test::random_rows;
using test::reconstruct;
using test::relative;
using test::TempFolder;
using ::testing::HasSubstr;

TEST(Formats, WhatIsReadBackComputesTheSame) {
  for (const Format& format : all_formats())
    for (const char* activation : {"topk", "relu", "batchtopk", "jumprelu", "gated"})
      for (const char* decoder : {"linear", "tied"})
        for (const ExportScale scale : {ExportScale::unit, ExportScale::trained}) {
          const SavedDictionary saved = random_dictionary(activation, decoder);
          // F3 gives each latent a factor and a threshold of its own: model_folding_test.
          if (format.unit_rows && saved.dictionary.tied()) continue;
          if (!problem_of(format, saved, scale).empty()) continue;
          SCOPED_TRACE(std::string(format.name) + " " + activation + " " + decoder);
          const TempFolder folder;
          export_dictionary(saved, format, scale, folder / "blocks.8.hook_resid_pre");
          const SavedDictionary back = load_foreign(folder / "blocks.8.hook_resid_pre");
          const bool nameless = format.name == "openai" || format.name == "gemma_npz";
          EXPECT_EQ(back.hook, nameless ? "" : saved.hook);
          EXPECT_EQ(back.source_model, nameless ? "" : "gpt2");
          EXPECT_EQ(back.layer, nameless ? -1 : 8);
          // Not every format knows gates; a threshold says the same.
          const std::string held = back.dictionary.config.activation;
          EXPECT_TRUE(held == activation ||
                      (std::string(activation) == "gated" && held == "jumprelu"));
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
    return problem_of(format_named(format), random_dictionary(activation, "linear")).empty();
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
  broken.write = [](const PlainDictionary& plain, const ExportNote& note, const std::string& to) {
    PlainDictionary other = plain;
    other.b_enc_n = plain.b_enc_n + 1e-3;
    format_named("saelens").write(other, note, to);
  };
  const Error error =
      error_of([&] { export_dictionary(saved, broken, ExportScale::unit, folder / "out"); });
  EXPECT_EQ(error.code(), ExitCode::error);
  EXPECT_THAT(error.line(), HasSubstr("another b_enc"));
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));

  broken.write = [](const PlainDictionary& plain, const ExportNote& note, const std::string& to) {
    PlainDictionary other = plain;
    other.k += 1;
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
    if (!problem_of(format, saved).empty()) continue;
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
  EXPECT_FLOAT_EQ(unit.threshold, saved.dictionary.threshold / 0.37);
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
  const SavedDictionary before = folded_saved(saved);
  SavedDictionary unit = before;
  EXPECT_LT(unit_decoder_rows(unit.dictionary), 1e-6);
  EXPECT_TRUE(at::equal(unit.dictionary.w_enc_ld, before.dictionary.w_enc_ld));  // kept its bits

  saved.dictionary.w_dec_ld = saved.dictionary.w_dec_ld * at::arange(1, 41).unsqueeze(1);
  unit = folded_saved(saved);
  EXPECT_NEAR(unit_decoder_rows(unit.dictionary), 39, 1e-4);
  EXPECT_LT((unit.dictionary.w_dec_ld.norm(2, 1) - 1).abs().max().item<double>(), 1e-6);
  const at::Tensor x = random_rows(saved, 200, 9);
  EXPECT_LT(relative(reconstruct(unit, x).x_hat_bd, reconstruct(saved, x).x_hat_bd), 1e-6);

  saved.dictionary.w_dec_ld[7].zero_();
  unit = folded_saved(saved);
  unit_decoder_rows(unit.dictionary);
  EXPECT_EQ(unit.dictionary.w_dec_ld[7].abs().max().item<double>(), 0);
  EXPECT_TRUE(at::isfinite(unit.dictionary.w_enc_ld).all().item<bool>());
}

}  // namespace
}  // namespace megadict
