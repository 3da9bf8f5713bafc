// The formulas of `plan` against what the communicators count in a real step, in integers, on every
// mesh of the ranks at hand.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>

#include "app/plan.h"
#include "app/settings.h"
#include "support/mpi_main.h"
#include "support/shards.h"
#include "support/temp_folder.h"
#include "train/start.h"

namespace megadict {
namespace {

constexpr int64_t kRows = 200, kWidth = 16;

using Counts = std::map<std::string, int64_t>;

void add_counts(const Communicator& axis, Counts& counts) {
  for (const auto& [name, count] : axis.counts())
    if (count.bytes > 0) counts[axis.axis() + ": " + name] += count.bytes;
}

// One training step; `all_dead`: with every latent dead, so that AuxK takes part.
Counts counted(const Config& config, const ShardIndex& data, bool all_dead) {
  Communicator& world = test_world();
  const BatchPlan plan(data, config.data, 0);
  const Mesh mesh = make_mesh(world, config.mesh);
  TrainJob job;
  job.data_config = config.data;
  job.model = config.model;
  job.step = {config.optim,       config.dead,          0,
              plan.steps(),       config.mesh.exchange, config.run.deterministic,
              config.mesh.overlap};
  job.data = &data;
  job.plan = &plan;
  TrainState state = start_state(mesh, job);
  if (all_dead) {
    state.tokens = config.dead.window_tokens;
    state.tokens_since_fired_l.fill_(config.dead.window_tokens);
  }
  StepWorkspace workspace = make_workspace(state, "fp32");
  BatchStream stream(data, plan, mesh.data_size(), mesh.feature_size(), mesh.data_index,
                     mesh.feature_index, 0, 2);
  world.reset_counts();
  mesh.feature->reset_counts();
  mesh.data->reset_counts();
  train_step(
      mesh, job.step, [&] { return stream.next(); }, false, state, workspace);
  Counts counts;
  for (const Communicator* axis : {&world, mesh.feature.get(), mesh.data.get()})
    add_counts(*axis, counts);
  return counts;
}

struct Planned {
  Counts exact, estimates;
};

Planned planned(const Config& config, bool all_dead) {
  PlanInput in = plan_input(config, kWidth, 4, 0);
  if (!all_dead) in.k_aux = 0;
  if (!all_dead) in.preact = false;
  Planned counts;
  for (const Transfer& transfer : transfers(in, config.mesh.data, config.mesh.feature))
    if (transfer.bytes > 0)
      (transfer.estimate ? counts.estimates
                         : counts.exact)[std::string(transfer.axis) + ": " + transfer.name] +=
          transfer.bytes;
  return counts;
}

constexpr const char* kAgain = "world: batchtopk values again";

// Shards of unequal size receive unequally; the formula is the largest one's, whose rank 0 is.
// Returns on how many meshes batchtopk selected twice, which depends on the data.
int compare(Config config, bool all_dead) {
  int twice = 0;
  Communicator& world = test_world();
  const test::TempFolder folder;
  test::write_shard(folder / "a.h5", {.rows = kRows, .width = kWidth, .chunk_rows = 16});
  const ShardIndex data = ShardIndex::open(folder.path());
  for (const MeshConfig& mesh : meshes_of(world.size(), config.model.n_latents)) {
    Settings settings{config, {}};
    settings.config.mesh.data = mesh.data;
    settings.config.mesh.feature = mesh.feature;
    check_against_data(settings, {.width = kWidth, .rows = kRows, .ranks = world.size()});
    Counts counts = counted(settings.config, data, all_dead);
    Planned plan = planned(settings.config, all_dead);
    if (world.rank() != 0) continue;
    for (const auto& [name, bytes] : plan.estimates) {
      // The estimate takes all latents for alike; here few of them hold most codes.
      EXPECT_GT(counts[name], 0) << name;
      EXPECT_LE(static_cast<double>(counts[name]), 1.25 * static_cast<double>(bytes)) << name;
      counts.erase(name);
    }
    twice += counts.contains(kAgain) ? 1 : 0;
    if (!counts.contains(kAgain)) plan.exact.erase(kAgain);
    EXPECT_EQ(counts, plan.exact) << "mesh " << mesh.data << "x" << mesh.feature;
  }
  return twice;
}

Config small() {
  Config config;
  config.data.batch_size = 64;
  config.data.tokens = 128;
  config.model.n_latents = 128;
  config.model.k = 4;
  config.dead.k_aux = 6;
  config.dead.window_tokens = 1000;
  return config;
}

TEST(PlanCounts, TopkStep) {
  for (const char* exchange : {"gradients", "tokens"})
    for (const char* optimiser : {"adam", "adam_b1_0"}) {
      Config config = small();
      config.mesh.exchange = exchange;
      config.optim.name = optimiser;
      compare(config, false);
    }
}

TEST(PlanCounts, StepWithAuxk) {
  for (const char* exchange : {"gradients", "tokens"}) {
    Config config = small();
    config.mesh.exchange = exchange;
    compare(config, true);
  }
}

TEST(PlanCounts, DeterministicStep) {
  Config config = small();
  config.run.deterministic = true;
  compare(config, false);
  compare(config, true);
}

TEST(PlanCounts, SizesThatDoNotDivide) {
  Config config = small();
  config.data.batch_size = 61;
  config.data.micro_batch_size = 17;
  config.model.n_latents = 103;
  compare(config, false);
  compare(config, true);
  config.mesh.overlap = true;
  compare(config, true);
}

TEST(PlanCounts, BatchTopkStep) {
  Config config = small();
  config.model.activation = "batchtopk";
  int twice = compare(config, false) + compare(config, true);
  config.data.batch_size = 61;
  config.model.n_latents = 103;
  twice += compare(config, false);
  if (test_world().size() > 1 && test_world().rank() == 0) {
    EXPECT_GT(twice, 0);
  }
}

TEST(PlanCounts, JumpreluStep) {
  for (const double target : {0.0, 20.0})
    for (const bool deterministic : {false, true}) {
      Config config = small();
      config.model.activation = "jumprelu";
      config.model.l0_target = target;
      config.run.deterministic = deterministic;
      config.mesh.exchange = "tokens";
      config.optim.name = "adam_b1_0";
      config.dead.preact_coefficient = deterministic ? 1e-3 : 0;
      compare(config, false);
      config.mesh.exchange = deterministic ? "tokens" : "gradients";
      config.data.micro_batch_size = 17;
      compare(config, true);
    }
}

TEST(PlanCounts, GatedStep) {
  for (const char* exchange : {"gradients", "tokens"})
    for (const bool deterministic : {false, true}) {
      if (deterministic && std::string(exchange) == "gradients") continue;
      Config config = small();
      config.model.activation = "gated";
      config.run.deterministic = deterministic;
      config.mesh.exchange = exchange;
      compare(config, false);
      config.data.micro_batch_size = 17;
      config.mesh.overlap = true;
      compare(config, true);
    }
}

TEST(PlanCounts, StepWithHiddenLayers) {
  for (const char* activation : {"topk", "gated"}) {
    Config config = small();
    config.model.activation = activation;
    config.model.encoder = "mlp";
    config.model.hidden = "40,9";
    config.model.n_latents = 103;
    compare(config, false);
    config.data.micro_batch_size = 17;
    compare(config, true);
  }
  Config config = small();
  config.model.activation = "relu";
  config.model.encoder = config.model.decoder = "deep";
  config.dead.auxk_alpha = 0;
  config.mesh.overlap = true;
  config.data.micro_batch_size = 17;
  compare(config, false);
}

TEST(PlanCounts, MatryoshkaStep) {
  for (const char* exchange : {"gradients", "tokens"}) {
    Config config = small();
    config.mesh.exchange = exchange;
    config.model.matryoshka = "10,0.5";
    compare(config, false);
    config.data.micro_batch_size = 17;
    compare(config, true);
  }
  Config config = small();
  config.model.matryoshka = "10,0.5";
  config.run.deterministic = true;
  compare(config, true);
}

// Every row of a shard lists all of it: one selection is enough.
TEST(PlanCounts, BatchTopkOfWholeShards) {
  Config config = small();
  config.model.activation = "batchtopk";
  config.model.k = 64;
  EXPECT_EQ(compare(config, false), 0);
}

TEST(PlanCounts, TiedReluStep) {
  Config config = small();
  config.model.activation = "relu";
  config.model.decoder = "tied";
  compare(config, false);
}

}  // namespace
}  // namespace megadict
