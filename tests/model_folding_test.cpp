#include "model/folding.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/activations.h"
#include "model/foreign_files.h"
#include "support/plain_dictionary.h"
#include "support/temp_folder.h"

namespace megadict {
namespace {

using test::expect_same_function;
using test::plain_activations;
using test::random_plain;
using test::random_tensor;
using test::TempFolder;
using ::testing::HasSubstr;

at::Tensor norms(const PlainDictionary& plain) {
  return plain.w_dec_nd.to(at::kDouble).norm(2, {1});
}

// What `to` does to the codes: F2 unit makes them z / s, F3 z |w_dec| (of a decoder that F2 trained
// has divided by s).
at::Tensor factor_of(const PlainDictionary& plain, const FoldTo& to) {
  const double s = plain.normalization.scale;
  if (to.unit_rows) return s / norms(plain);
  return at::full({plain.n}, to.scale == ExportScale::unit ? s : 1.0, at::kDouble);
}

// A prolu has no bias that F4 could go into.
bool can_fold(const PlainDictionary& plain, const FoldTo& to) {
  const bool rewrite = to.activation != plain.activation;
  const bool selects = plain.activation == "topk";
  if (!rewrite && plain.activation == "prolu" && !to.subtracts_b_dec) return false;
  return !(rewrite && selects) && !(to.unit_rows && selects && plain.decoder == "tied");
}

TEST(Folding, EveryRuleKeepsWhatIsComputed) {
  for (const std::string& activation : plain_activations())
    for (const char* decoder : {"linear", "tied"})
      for (const std::string& as : {activation, std::string("jumprelu")})
        for (const ExportScale scale : {ExportScale::unit, ExportScale::trained})
          for (const bool unit_rows : {false, true})
            for (const bool subtracts : {false, true}) {
              const PlainDictionary plain = random_plain(activation, decoder);
              // One threshold for all is none after F3.
              const bool splits = as == "batchtopk" && unit_rows && plain.decoder == "tied";
              const FoldTo to{as, scale, unit_rows, subtracts, kNoLeastThreshold};
              if (!can_fold(plain, to) || splits) continue;
              SCOPED_TRACE(activation + " " + decoder + " as " + as + " " +
                           std::string(name_of(scale)) + (unit_rows ? " unit" : "") +
                           (subtracts ? " subtracting" : ""));
              const PlainDictionary out = folded(plain, to);
              EXPECT_EQ(out.activation, as);
              EXPECT_EQ(out.subtracts_b_dec, subtracts);
              EXPECT_EQ(out.normalization.scale, 1.0);
              expect_same_function(plain, out, factor_of(plain, to));
              if (unit_rows && scale == ExportScale::unit) {
                EXPECT_LT((norms(out) - 1).abs().max().item<double>(), 1e-6);
              }
            }
}

TEST(Folding, TheOriginalIsLeftAlone) {
  const PlainDictionary plain = random_plain("gated", "linear");
  const at::Tensor before = plain.w_enc_nd.clone();
  folded(plain, {"jumprelu", ExportScale::trained, true, false, kNoLeastThreshold});
  EXPECT_TRUE(at::equal(plain.w_enc_nd, before));
  EXPECT_TRUE(plain.r_mag_n.defined());
}

TEST(Folding, WhatAnotherToolSaysIsAbsorbed) {
  for (const std::string& activation : plain_activations()) {
    if (activation == "prolu") continue;  // no file holds one
    SCOPED_TRACE(activation);
    // A file that subtracts nothing is what F4 writes.
    const PlainDictionary plain = random_plain(activation, "linear");
    const PlainDictionary file =
        folded(plain, {activation, ExportScale::trained, false, false, kNoLeastThreshold});
    PlainDictionary copy = folded(file, {activation, ExportScale::unit, false, true, -1e38});
    expect_same_function(file, copy, at::ones({40}, at::kDouble));
    EXPECT_TRUE(copy.subtracts_b_dec);
  }
}

// h |w_dec| is what is selected, and what the threshold is compared with.
TEST(Folding, SelectionByNormBecomesUnitRows) {
  for (const char* activation : {"topk", "batchtopk", "jumprelu"}) {
    SCOPED_TRACE(activation);
    PlainDictionary unit = random_plain(activation, "linear"), free = unit;
    unit.normalization = free.normalization = {};
    const at::Tensor norm = (0.5 + at::arange(40, at::kDouble) / 20).to(at::kFloat);
    free.w_dec_nd = unit.w_dec_nd * norm.unsqueeze(1);
    free.w_enc_nd = unit.w_enc_nd / norm.unsqueeze(1);
    free.b_enc_n = unit.b_enc_n / norm;
    free.selects_by_norm = true;
    const PlainDictionary out = absorbed(free);
    EXPECT_FALSE(out.selects_by_norm);
    expect_same_function(unit, out, at::ones({40}, at::kDouble));
  }
}

TEST(Folding, ARowOfZerosStaysZero) {
  PlainDictionary plain = random_plain("relu", "linear");
  plain.w_dec_nd[7].zero_();
  const PlainDictionary out =
      folded(plain, {"relu", ExportScale::unit, true, true, kNoLeastThreshold});
  EXPECT_EQ(out.w_dec_nd[7].abs().max().item<double>(), 0);
  EXPECT_EQ(out.w_enc_nd[7].abs().max().item<double>(), 0);
  EXPECT_TRUE(at::isfinite(out.b_enc_n).all().item<bool>());
}

// The dictionaries that training does not make here go through the formats all the same.
TEST(Folding, EveryActivationThroughEveryFormat) {
  for (const Format& format : all_formats())
    for (const std::string& activation : plain_activations())
      for (const char* decoder : {"linear", "tied"})
        for (const ExportScale scale : {ExportScale::unit, ExportScale::trained}) {
          const PlainDictionary plain = random_plain(activation, decoder);
          if (!problem_of(format, plain, scale).empty()) continue;
          SCOPED_TRACE(std::string(format.name) + " " + activation + " " + decoder + " " +
                       std::string(name_of(scale)));
          const TempFolder folder;
          export_dictionary(plain, format, scale, folder / "blocks.8.hook_resid_pre");
          const PlainDictionary back = load_plain(folder / "blocks.8.hook_resid_pre");
          EXPECT_TRUE(back.subtracts_b_dec);
          const bool unit_rows = format.unit_rows && scale == ExportScale::unit;
          expect_same_function(plain, back,
                               factor_of(plain, {activation, scale, unit_rows, true, 0}));
        }
}

struct Row {
  const char* format;
  std::vector<std::string> refused;
};

TEST(Folding, WhoHoldsWhat) {
  const std::vector<Row> rows = {{"saelens", {}},
                                 {"sparsify", {"relu", "batchtopk", "jumprelu", "gated", "prolu"}},
                                 {"dictionary_learning", {}},
                                 {"openmoss", {}},
                                 {"openai", {"topk", "batchtopk", "jumprelu", "gated", "prolu"}},
                                 {"gemma_npz", {"topk"}}};
  ASSERT_EQ(rows.size(), all_formats().size());
  for (const Row& row : rows)
    for (const std::string& activation : plain_activations()) {
      const bool refused =
          std::find(row.refused.begin(), row.refused.end(), activation) != row.refused.end();
      EXPECT_EQ(problem_of(format_named(row.format), random_plain(activation, "linear")) != "",
                refused)
          << row.format << " " << activation;
    }
}

TEST(Folding, WhatHasNoModelIsRefused) {
  const auto error = test::error_of([] { saved_of(random_plain("prolu", "linear"), "x"); });
  EXPECT_THAT(error.line(), HasSubstr("has no counterpart"));
}

// What training makes and what files hold are the same tensors.
TEST(Folding, OursThereAndBack) {
  for (const ActivationFn& activation : all_activations()) {
    SCOPED_TRACE(activation.name);
    const SavedDictionary ours = test::random_dictionary(std::string(activation.name), "linear");
    const SavedDictionary back = saved_of(plain_of(ours), "x");
    EXPECT_EQ(back.dictionary.config.activation, activation.name);
    EXPECT_TRUE(at::equal(back.dictionary.b_enc_l, ours.dictionary.b_enc_l));
    ASSERT_EQ(back.dictionary.extra_l.size(), activation.parameters.size());
    for (size_t i = 0; i < activation.parameters.size(); ++i)
      EXPECT_TRUE(at::equal(back.dictionary.extra_l[i], ours.dictionary.extra_l[i])) << i;
    const test::TempFolder folder;
    write_saved(ours, folder / "copy");
    test::expect_same_function(ours, load_saved(folder / "copy", "last"), 1.0);
  }
}

}  // namespace
}  // namespace megadict
