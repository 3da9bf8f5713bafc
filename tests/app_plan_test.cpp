#include "app/plan.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "app/fields.h"
#include "app/settings.h"

namespace megadict {
namespace {

// B = 64, D = F = 2, d = 16, n = 128, k = 4.
PlanInput small() {
  PlanInput in;
  in.width = 16;
  in.latents = 128;
  in.k = 4;
  in.batch = in.micro = 64;
  in.tokens = false;
  return in;
}

int64_t bytes_of(const std::vector<Transfer>& all, const std::string& name) {
  for (const Transfer& transfer : all)
    if (name == transfer.name) return transfer.bytes;
  ADD_FAILURE() << "no transfer '" << name << "'";
  return -1;
}

TEST(MemoryPlan, TwoShufflingWindowsAreHeldWhereThereAreAsMany) {
  PlanInput in;
  in.width = 10;
  in.latents = 64;
  in.k = 4;
  in.batch = in.micro = 100;
  in.sample_bytes = 2;
  in.shuffle_buffer = 1000;
  EXPECT_EQ(memory(in, 1, 1).window, 2 * 1000 * 20);
  in.rows = 1500;
  EXPECT_EQ(memory(in, 1, 1).window, 1500 * 20);
  EXPECT_EQ(memory(in, 2, 2).window, 375 * 20);
}

TEST(Transfers, MatchTheWorkedExample) {
  const auto all = transfers(small(), 2, 2);
  EXPECT_EQ(bytes_of(all, "rows"), 1024);
  EXPECT_EQ(bytes_of(all, "topk candidates"), 256);
  EXPECT_EQ(bytes_of(all, "topk thresholds"), 128);
  EXPECT_EQ(bytes_of(all, "reconstruction"), 1024);
  EXPECT_EQ(bytes_of(all, "residual gradient"), 1024);
  EXPECT_EQ(bytes_of(all, "step sums"), 192);
  EXPECT_EQ(bytes_of(all, "fired latents"), 8);
  EXPECT_EQ(total_bytes(all, "data"), 8448 + 8);  // option B
  EXPECT_EQ(total_bytes(all, "feature"), 1024 + 256 + 128 + 1024 + 1024);
  EXPECT_EQ(total_bytes(all), 3456 + 8448 + 192 + 8);
}

TEST(Transfers, HalvePrecisionShardsHalveX) {
  PlanInput in = small();
  in.sample_bytes = 2;
  EXPECT_EQ(bytes_of(transfers(in, 2, 2), "rows"), 512);
}

// B_l = 65536, d = 768, k = 32, F = 8: x of 2 bytes, all else 4.
TEST(Transfers, MatchTheLargeExample) {
  PlanInput in;
  in.width = 768;
  in.latents = 131072;
  in.k = 32;
  in.batch = in.micro = 65536;
  in.sample_bytes = 2;
  const auto all = transfers(in, 1, 8);
  EXPECT_EQ(bytes_of(all, "rows"), 88080384);
  EXPECT_EQ(bytes_of(all, "topk candidates"), 4587520);
  EXPECT_EQ(bytes_of(all, "topk thresholds"), 458752);
  EXPECT_EQ(bytes_of(all, "reconstruction"), 176160768);
  EXPECT_EQ(bytes_of(all, "residual gradient"), 2 * 88080384);
}

TEST(Transfers, OneRankReceivesNothing) {
  PlanInput in = small();
  in.k_aux = 8;
  EXPECT_EQ(total_bytes(transfers(in, 1, 1)), 0);
}

// Five rows over D = 2, F = 3: three rows a data row, padded to one an owner.
TEST(Transfers, PadSizesThatDoNotDivide) {
  PlanInput in = small();
  in.batch = in.micro = 5;
  in.latents = 7;
  const auto all = transfers(in, 2, 3);
  EXPECT_EQ(bytes_of(all, "rows"), 4 * 16 * 1 * 2);
  // Shards of 3, 2, 2 latents, padded to 4.
  EXPECT_EQ(bytes_of(all, "gradients W_enc"), 4 * 16 * 2);
  EXPECT_EQ(bytes_of(all, "rows b_enc"), 4 * 2);
  EXPECT_EQ(bytes_of(all, "fired latents"), 1);
}

// 2x2: 64 tokens of width 16, of which the other data row holds 32; 32 latents a rank, which have
// 64 of the 256 codes, 32 of them of foreign tokens, on 32 (1 - 1/e) latents.
TEST(Transfers, TokensOverTheDataAxis) {
  PlanInput in = small();
  in.tokens = true;
  const auto dense = transfers(in, 2, 2);
  EXPECT_EQ(bytes_of(dense, "rows to owners"), 4 * 16 * 32);
  EXPECT_EQ(bytes_of(dense, "residual gradient to owners"), 4 * 16 * 32);
  EXPECT_EQ(bytes_of(dense, "list sizes"), 16);
  EXPECT_EQ(bytes_of(dense, "codes to owners"), static_cast<int64_t>(8 * (32 + 32 * 0.6321206)));
  EXPECT_EQ(bytes_of(dense, "rows W_enc"), 4 * 16 * 32);
  in.lazy = true;  // rows that 64 codes fall on, with bias and number
  const auto lazy = transfers(in, 2, 2);
  EXPECT_EQ(bytes_of(lazy, "updated rows"),
            4 * (2 * 16 + 2) * static_cast<int64_t>(32 * 0.8646647));
  EXPECT_EQ(total_bytes(transfers(in, 1, 4), "data"), 0);
}

TEST(Transfers, TheCheaperExchangeDependsOnBatchAndLatents) {
  PlanInput in = small();
  in.width = 768;
  in.k = 32;
  in.lazy = true;
  in.latents = 131072;
  in.batch = in.micro = 4096;
  EXPECT_STREQ(cheaper_exchange(in, 2, 2), "tokens");
  in.batch = in.micro = 1 << 20;
  EXPECT_STREQ(cheaper_exchange(in, 2, 2), "gradients");
  in.batch = in.micro = 4096;
  in.clips = true;
  EXPECT_STREQ(cheaper_exchange(in, 2, 2), "gradients");
}

TEST(Transfers, MicroBatchesSumUp) {
  PlanInput in = small();
  in.micro = 16;
  EXPECT_EQ(total_bytes(transfers(in, 2, 2)), total_bytes(transfers(small(), 2, 2)));
  in.micro = 24;  // 24 + 24 + 16
  EXPECT_EQ(total_bytes(transfers(in, 2, 2)), total_bytes(transfers(small(), 2, 2)));
}

TEST(Transfers, ReluSendsNoCandidatesAndAuxkASecondReconstruction) {
  PlanInput in = small();
  in.select = PlanInput::Select::positive;
  EXPECT_EQ(total_bytes(transfers(in, 2, 2), "feature"), 3 * 1024);
  in.k_aux = 4;
  EXPECT_EQ(total_bytes(transfers(in, 2, 2), "feature"), 3 * 1024 + 8 + 256 + 128 + 2 * 1024);
  EXPECT_EQ(bytes_of(transfers(in, 2, 2), "auxk sums"), 24);
}

TEST(Memory, CountsWeightsMomentsAndGradients) {
  PlanInput in = small();
  const MemoryPlan whole = memory(in, 1, 1);
  EXPECT_EQ(whole.weights, 4 * (128 * 33 + 16));
  EXPECT_EQ(whole.moments, 2 * 4 * (128 * 33 + 16));
  EXPECT_EQ(whole.gradients, 257 * 8 * 16);  // rows are updated in one pass
  PlanInput clipped = small();
  clipped.clips = true;
  EXPECT_EQ(memory(clipped, 1, 1).gradients, 4 * 128 * 33 + 8 * 16);
  EXPECT_EQ(whole.average, 0);
  EXPECT_EQ(whole.counters, 8 * 128);
  const MemoryPlan part = memory(in, 2, 2);
  EXPECT_EQ(part.weights, 4 * (64 * 33 + 16));
  EXPECT_EQ(part.moments, 2 * 4 * (32 * 33 + 16));
  EXPECT_EQ(part.gradients, 4 * (64 + 32) * 33 + 8 * 16);
  EXPECT_LT(part.buffers, whole.buffers);
  in.tied = true;
  EXPECT_EQ(memory(in, 1, 1).weights, 4 * (128 * 17 + 16));
  in.average = true;
  EXPECT_EQ(memory(in, 1, 1).average, 4 * (128 * 17 + 16));
}

TEST(Memory, CountsTheScreenWhereItMayBeUsed) {
  PlanInput in = small();
  in.screen = PlanInput::Screen::large_shards;
  EXPECT_EQ(memory(in, 1, 1).screen, 0);
  in.screen = PlanInput::Screen::always;
  EXPECT_EQ(memory(in, 1, 2).screen, 64 * (64 + 76));  // rows of 16 are padded to 64 bytes
  in.screen_kind = ScreenKind::bf16;
  in.width = 40;
  EXPECT_EQ(memory(in, 1, 2).screen, 64 * (128 + 76));
  in.width = 16;
  in.screen_kind = ScreenKind::int8;
  in.screen = PlanInput::Screen::large_shards;
  in.latents = 1 << 20;
  in.width = 768;
  EXPECT_EQ(memory(in, 1, 1).screen, (1 << 20) * (768 + 76));
}

TEST(Memory, TheFeatureAxisThatFits) {
  PlanInput in = small();
  EXPECT_EQ(feature_axis_that_fits(in, memory(in, 1, 1).peak()), 1);
  EXPECT_EQ(feature_axis_that_fits(in, memory(in, 1, 1).peak() - 1), 2);
  EXPECT_EQ(feature_axis_that_fits(in, 1), 0);
}

// A million latents of width 768: a table worked out by hand.
TEST(Memory, MatchesTheTableOfSizes) {
  PlanInput in;
  in.width = 768;
  in.latents = 1048576;
  in.k = 32;
  in.batch = in.micro = 4096;
  in.clips = true;  // else there is no gradient tensor
  const MemoryPlan held = memory(in, 1, 1);
  EXPECT_NEAR(static_cast<double>(held.weights) / 1e9, 6.44, 0.01);
  EXPECT_NEAR(static_cast<double>(held.moments) / 1e9, 12.9, 0.05);
  EXPECT_NEAR(static_cast<double>(held.weights + held.gradients + held.moments) / 1e9, 25.8, 0.05);
}

TEST(Disk, HoldsThoseKeptAndOneBeingWritten) {
  const PlanInput in = small();
  const DiskPlan plan = disk(in);
  EXPECT_EQ(parameters(in), 128 * 33 + 16);
  EXPECT_EQ(plan.checkpoint, 3 * 4 * (128 * 33 + 16) + 8 * 128);
  EXPECT_EQ(plan.peak, 4 * plan.checkpoint);
}

TEST(Disk, CountsMilestones) {
  Config config;
  config.model.n_latents = 64;
  config.data.batch_size = config.data.micro_batch_size = 100;
  config.data.tokens = 100 * 5000;
  config.checkpoint = {.every_steps = 1000, .every_minutes = 0, .keep = 2, .keep_ratio = 2};
  EXPECT_EQ(plan_input(config, 16, 4, 0).keep, 2 + 4);  // from 2^9, 2^10, 2^11, 2^12 on
  config.checkpoint.every_minutes = 15;
  EXPECT_EQ(plan_input(config, 16, 4, 0).keep, 2 + 13);  // from 1, 2, 4, ... on
  config.checkpoint.keep_ratio = 0;
  EXPECT_EQ(plan_input(config, 16, 4, 0).keep, 2);
}

TEST(Meshes, AreAllFactorisationsWithALatentForEveryRank) {
  const auto meshes = meshes_of(6, 100);
  ASSERT_EQ(meshes.size(), 4u);
  EXPECT_EQ(meshes[0].data, 1);
  EXPECT_EQ(meshes[0].feature, 6);
  EXPECT_EQ(meshes_of(6, 3).size(), 3u);
}

TEST(BytesText, Rounds) {
  EXPECT_EQ(bytes_text(0), "0 B");
  EXPECT_EQ(bytes_text(1023), "1023 B");
  EXPECT_EQ(bytes_text(1536), "1.50 KiB");
  EXPECT_EQ(bytes_text(int64_t{3} << 40), "3.00 TiB");
}

// Width and ranks that each preset names in its comment.
struct Preset {
  const char* name;
  int64_t width;
  int ranks;
  int64_t latents;
};

constexpr Preset kPresets[] = {
    {"quickstart", 576, 2, 9216},    {"topk_gpt2_small", 768, 4, 24576},
    {"tinystories", 128, 2, 256},    {"pythia_70m", 512, 2, 3072},
    {"k1_1m", 4096, 8, 1048576},     {"k1_4m", 4096, 32, 4194304},
    {"k1_34m", 4096, 256, 33554432}, {"openai_16m", 12288, 256, 16777216},
};

TEST(Presets, AreAllListedHere) {
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(MEGADICT_SOURCE_DIR "/configs"))
    files += entry.path().extension() == ".ini" ? 1 : 0;
  EXPECT_EQ(files, std::size(kPresets));
}

TEST(Presets, AreReadCheckedAndPlanned) {
  for (const Preset& preset : kPresets) {
    SCOPED_TRACE(preset.name);
    Settings s;
    const std::string path = std::string(MEGADICT_SOURCE_DIR "/configs/") + preset.name + ".ini";
    const OptionSet set{
        .command = "plan", .summary = "", .fields = fields_of(s.config), .config_file = true};
    s.sources = read_options(set, {"--config", path});
    check_config(s.config);
    const int64_t rows = 1000000000, batch = s.config.data.batch_size;
    const int64_t tokens = s.config.data.tokens > 0 ? s.config.data.tokens : rows;
    const DataFacts facts{preset.width, rows, tokens / batch, tokens, preset.ranks};
    check_against_data(s, facts);
    EXPECT_TRUE(remarks_on(s, facts).empty());
    EXPECT_EQ(s.config.model.n_latents, preset.latents);
    const PlanInput in = plan_input(s.config, preset.width, 4, 0);
    const int64_t weights = 4 * (preset.latents * (2 * preset.width + 1) + preset.width);
    EXPECT_EQ(disk(in).checkpoint, (in.average ? 4 : 3) * weights + 8 * preset.latents);
    for (const MeshConfig& mesh : meshes_of(preset.ranks, preset.latents)) {
      const MemoryPlan held = memory(in, mesh.data, mesh.feature);
      EXPECT_GT(held.buffers, 0);
      EXPECT_EQ(held.peak(), held.weights + held.moments + held.gradients + held.average +
                                 held.counters + held.screen + held.buffers + held.window +
                                 held.program);
      EXPECT_GT(total_bytes(transfers(in, mesh.data, mesh.feature)), 0);
    }
  }
}

}  // namespace
}  // namespace megadict
