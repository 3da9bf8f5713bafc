#include "train/resample.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <unordered_set>

#include "base/error.h"
#include "base/philox.h"
#include "comm/agree.h"
#include "eval/evaluate.h"
#include "kernels/fixed_point.h"
#include "model/activations.h"
#include "model/forward.h"
#include "model/tensor_views.h"
#include "train/dead.h"
#include "train/schedule.h"

namespace megadict {

namespace {

constexpr int kWeightBits = 40;      // of a row's weight
constexpr uint32_t kTries = 8;       // draws of a latent until it has a row of its own
constexpr int64_t kRowBlock = 4096;  // rows that are read together to start from

std::vector<LatentScalar> encoder_bias(const TrainState& state) {
  return {{state.dictionary.b_enc_l, state.b_enc, state.ema_b_enc, 0.0F}};
}

// And what the activation learns of each latent, as a fresh dictionary has it.
std::vector<LatentScalar> bias_and_extra(const TrainState& state) {
  const Dictionary& dictionary = state.dictionary;
  std::vector<LatentScalar> all = encoder_bias(state);
  const auto parameters = activation_named(dictionary.config.activation).parameters;
  for (size_t i = 0; i < parameters.size(); ++i)
    all.push_back({dictionary.extra_l[i], state.extra[i],
                   state.ema_extra.empty() ? at::Tensor() : state.ema_extra[i],
                   static_cast<float>(parameters[i].start(dictionary.config))});
  return all;
}

constexpr std::array<ResampleRule, 5> kRules = {{
    {"topk", encoder_bias},
    {"relu", encoder_bias},
    {"batchtopk", encoder_bias},
    {"jumprelu", bias_and_extra},
    {"gated", bias_and_extra},
}};

int64_t parsed_step(std::string_view word, const std::string& text) {
  int64_t step = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), step);
  if (error != std::errc() || end != word.data() + word.size() || step < 1)
    fail_agreed(ExitCode::usage,
                fmt::format("dead.resample_steps = '{}': '{}' is no step", text, word),
                "never, every:1000, or steps from 1 on in ascending order: 1000,2000,4000");
  return step;
}

}  // namespace

bool ResampleSteps::due(int64_t step) const {
  if (step < 1) return false;
  if (every > 0 && step % every == 0) return true;
  return std::binary_search(listed.begin(), listed.end(), step);
}

int64_t ResampleSteps::first() const {
  return listed.empty() ? every : listed.front();
}

ResampleSteps resample_steps(const std::string& text) {
  constexpr std::string_view kEvery = "every:";
  ResampleSteps out;
  std::string_view rest = text;
  if (rest == "never") return out;
  if (rest.starts_with(kEvery)) {
    out.every = parsed_step(rest.substr(kEvery.size()), text);
    return out;
  }
  for (;;) {
    const size_t comma = rest.find(',');
    const int64_t step = parsed_step(rest.substr(0, comma), text);
    if (!out.listed.empty() && step <= out.listed.back())
      fail_agreed(ExitCode::usage,
                  fmt::format("dead.resample_steps = '{}': {} comes after {}", text, step,
                              out.listed.back()),
                  "steps in ascending order, none twice");
    out.listed.push_back(step);
    if (comma == std::string_view::npos) return out;
    rest.remove_prefix(comma + 1);
  }
}

const ResampleRule* resample_rule(std::string_view activation) {
  const auto rule = std::find_if(kRules.begin(), kRules.end(), [&](const ResampleRule& one) {
    return one.activation == activation;
  });
  return rule == kRules.end() ? nullptr : &*rule;
}

std::vector<int64_t> rows_to_come(const BatchPlan& plan, int64_t step, int64_t count) {
  const int64_t wanted = std::min(count, plan.rows_per_epoch());
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < plan.steps() && static_cast<int64_t>(rows.size()) < wanted; ++i) {
    const int64_t next = (step + i) % plan.steps();
    for (int64_t micro = 0; micro < plan.micro_batches(next); ++micro) {
      const std::vector<int64_t> more = plan.rows(next, micro);
      rows.insert(rows.end(), more.begin(), more.end());
    }
  }
  std::sort(rows.begin(), rows.end());
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  return rows;
}

double since_resampling(const DeadConfig& dead, const TrainState& state) {
  if (state.resampled_at < 0) return 1;
  return ramp(state.step - state.resampled_at, dead.resample_warmup_steps);
}

namespace {

// |x - x_hat|^2 of the rows this rank owns, fp64 [rows]; the others' stay 0.
StopRequest measure_losses(const Mesh& mesh, const ResampleArgs& args, const TrainState& state,
                           at::Tensor& loss_r) {
  Dictionary dictionary = state.dictionary;
  dictionary.threshold = args.threshold;
  const auto rows = static_cast<int64_t>(args.rows.size());
  for (int64_t begin = 0; begin < rows; begin += args.block_rows) {
    const StopRequest stop = agreed_stop(*mesh.world);
    if (stop != StopRequest::none) return stop;
    const auto block = args.rows.subspan(
        static_cast<size_t>(begin), static_cast<size_t>(std::min(args.block_rows, rows - begin)));
    const MicroBatch micro = read_owned(mesh, args.data, block);
    const Rows gathered =
        gather_rows(mesh, micro, dictionary.d, state.normalization, dictionary.w_enc_ld.device());
    const Forward fwd = forward(mesh, dictionary, gathered, {}, Sums::exact);
    const auto owned = static_cast<int64_t>(micro.row_ids.size());
    if (owned == 0) continue;
    const int64_t first = begin + micro.part.row_range.begin + micro.part.owned.begin;
    const auto squares = [&](const at::Tensor& slot) {
      return row_squares(slot.narrow(0, 0, owned));
    };
    // A row that is b_dec has no direction to start from.
    loss_r.narrow(0, first, owned).copy_(squares(fwd.residual_sd) * squares(fwd.target_sd).gt(0));
  }
  return StopRequest::none;
}

// floor(loss^2 * s), s the power of two that brings the largest below 2^40; of all ranks' rows,
// summed up along them: the end of each row's interval. Undefined where all losses are 0.
at::Tensor intervals(const Mesh& mesh, const at::Tensor& loss_r, int64_t step) {
  const double largest = largest_of_all(mesh, largest_magnitude(loss_r), "largest loss");
  if (!std::isfinite(largest))
    throw Error(ExitCode::diverged,
                fmt::format("step {}: a reconstruction is not finite while dead latents are "
                            "resampled; no checkpoint is written",
                            step),
                "lower optim.lr", true);
  if (largest == 0) return {};
  int exponent = 0;
  std::frexp(largest * largest, &exponent);
  const double up = std::ldexp(1.0, kWeightBits - exponent);
  at::Tensor weight_r = (loss_r.square() * up).floor_().to(at::kLong);
  mesh.world->all_reduce(view_of(weight_r), ReduceOp::sum, "row weights");
  return weight_r.to(at::kCPU).cumsum(0);
}

// Global ids of the dead latents of all shards, ascending. Collective over feature.
std::vector<int64_t> all_dead(const Mesh& mesh, const Dictionary& dictionary,
                              const at::Tensor& dead_l) {
  const int64_t widest = shard_of(dictionary.n, mesh.feature_size(), 0).size();
  at::Tensor mine = at::zeros({widest}, dead_l.options().dtype(at::kByte));
  mine.narrow(0, 0, dead_l.size(0)).copy_(dead_l);
  at::Tensor all = at::empty({mesh.feature_size(), widest}, mine.options());
  const at::Tensor& send = mine;
  mesh.feature->all_gather(view_of(send), view_of(all), "who is dead");
  std::vector<int64_t> dead;
  for (int f = 0; f < mesh.feature_size(); ++f) {
    const int64_t first = shard_of(dictionary.n, mesh.feature_size(), f).begin;
    const at::Tensor ids = all[f].nonzero().squeeze(1).to(at::kCPU).contiguous();
    for (int64_t i = 0; i < ids.size(0); ++i)
      dead.push_back(first + ids.const_data_ptr<int64_t>()[i]);
  }
  return dead;
}

int64_t row_at(std::span<const int64_t> ends, uint64_t bits) {
  const auto total = static_cast<unsigned __int128>(ends.back());
  const auto place = static_cast<int64_t>((static_cast<unsigned __int128>(bits) * total) >> 64);
  return std::upper_bound(ends.begin(), ends.end(), place) - ends.begin();
}

// For each latent the place of its row among `ends`.
std::vector<int64_t> draw(std::span<const int64_t> ends, const std::vector<int64_t>& latents,
                          uint64_t seed, int64_t step) {
  const Rng rng{seed, Purpose::resample, static_cast<uint64_t>(step)};
  std::vector<int64_t> rows;
  std::unordered_set<int64_t> taken;
  for (int64_t latent : latents) {
    int64_t row = 0;
    for (uint32_t attempt = 0; attempt < kTries; ++attempt) {
      row = row_at(ends, rng.bits64(static_cast<uint64_t>(latent), attempt));
      if (!taken.contains(row)) break;
    }
    taken.insert(row);
    rows.push_back(row);
  }
  return rows;
}

// Of the latents that are not dead; of all where there is none. Before anything is written.
double mean_encoder_norm(const Mesh& mesh, const TrainState& state, const at::Tensor& dead_l) {
  const Range own = state.own;
  const at::Tensor norm = norms_of_rows(state.dictionary.w_enc_ld.narrow(0, own.begin, own.size()));
  const at::Tensor alive = dead_l.narrow(0, own.begin, own.size()).logical_not().to(at::kDouble);
  const int64_t n = state.dictionary.n;
  const at::Tensor sums =
      exact_sum(mesh, at::stack({norm * alive, alive, norm}, 1), n, "alive encoder rows");
  const double count = sums[1].item<double>();
  return count > 0 ? sums[0].item<double>() / count
                   : sums[2].item<double>() / static_cast<double>(n);
}

struct Start {
  int64_t row;     // global
  int64_t latent;  // local
};

// The rows at this length; in fp64 on the way. One of zeros, as hidden layers may give, stays.
at::Tensor directions(const at::Tensor& rows_bd, double length) {
  const at::Tensor wide = rows_bd.to(at::kDouble);
  const at::Tensor norm = norms_of_rows(wide).unsqueeze(1);
  const at::Tensor unit = wide / at::where(norm > 0, norm, at::ones_like(norm));
  return (unit * length).to(at::kFloat);
}

// Writes the rows of the latents in the order of their data rows, so that each chunk is read once.
void write_rows(const ResampleArgs& args, std::vector<Start> starts, double encoder_norm,
                const TrainState& state) {
  const Dictionary& dictionary = state.dictionary;
  std::sort(starts.begin(), starts.end(), [](const Start& a, const Start& b) {
    return a.row != b.row ? a.row < b.row : a.latent < b.latent;
  });
  for (size_t begin = 0; begin < starts.size(); begin += kRowBlock) {
    const size_t end = std::min(starts.size(), begin + static_cast<size_t>(kRowBlock));
    std::vector<int64_t> rows, latents;
    for (size_t i = begin; i < end; ++i) {
      rows.push_back(starts[i].row);
      latents.push_back(starts[i].latent);
    }
    at::Tensor raw = at::empty({static_cast<int64_t>(rows.size()), dictionary.d}, at::kFloat);
    read_rows(args.data, rows, raw.mutable_data_ptr<float>());
    const at::Tensor x = normalized(raw.to(dictionary.w_enc_ld.device()), state.normalization);
    const at::Tensor latent = at::tensor(latents, at::kLong).to(x.device());
    if (!dictionary.tied())
      dictionary.w_dec_ld.index_copy_(0, latent, directions(x - dictionary.b_dec_d, 1));
    dictionary.w_enc_ld.index_copy_(0, latent,
                                    directions(seen_by_encoder(dictionary, x), encoder_norm));
  }
}

// What is kept of the latents besides their rows, which are written: of those this rank owns the
// optimiser's state and averages, of all biases and counters.
void reset_latents(const std::vector<int64_t>& latents, TrainState& state) {
  const Dictionary& dictionary = state.dictionary;
  const auto device = dictionary.w_enc_ld.device();
  std::vector<int64_t> own;
  for (int64_t latent : latents)
    if (latent >= state.own.begin && latent < state.own.end)
      own.push_back(latent - state.own.begin);
  const at::Tensor all_r = at::tensor(latents, at::kLong).to(device),
                   own_r = at::tensor(own, at::kLong).to(device);
  const auto fill = [](at::Tensor t, const at::Tensor& rows, double value) {
    if (t.defined()) t.index_fill_(0, rows, value);
  };
  const auto empty = [&](const Moments& moments) {
    fill(moments.m, own_r, 0);
    fill(moments.v, own_r, 0);
  };
  const auto follow = [&](at::Tensor average, const at::Tensor& rows_ld) {
    if (average.defined())
      average.index_copy_(0, own_r, rows_ld.index_select(0, own_r + state.own.begin));
  };
  empty(state.w_enc);
  empty(state.w_dec);
  follow(state.ema_w_enc, dictionary.w_enc_ld);
  follow(state.ema_w_dec, dictionary.w_dec_ld);
  for (const LatentScalar& scalar : resample_rule(dictionary.config.activation)->scalars(state)) {
    fill(scalar.value_l, all_r, scalar.start);
    fill(scalar.average_l, own_r, scalar.start);
    empty(scalar.moments);
  }
  fill(state.last_step_l, own_r, static_cast<double>(state.step));
  fill(state.tokens_since_fired_l, all_r, 0);
}

}  // namespace

Resampled resample_dead(const Mesh& mesh, const ResampleArgs& args, Screen* screen,
                        TrainState& state) {
  const c10::NoGradGuard no_grad;
  const Dictionary& dictionary = state.dictionary;
  const at::Tensor dead_l = dead_mask(state, args.window_tokens);
  const std::vector<int64_t> dead = all_dead(mesh, dictionary, dead_l);
  Resampled out;
  if (dead.empty() || args.rows.empty()) return out;
  at::Tensor loss_r = at::zeros({static_cast<int64_t>(args.rows.size())},
                                dictionary.w_enc_ld.options().dtype(at::kDouble));
  out.stop = measure_losses(mesh, args, state, loss_r);
  if (out.stop != StopRequest::none) return out;
  const at::Tensor ends_r = intervals(mesh, loss_r, state.step);
  if (!ends_r.defined()) return out;  // nothing is left to explain
  const double scale = dictionary.tied() ? std::sqrt(args.scale) : args.scale;
  const double encoder_norm = scale * mean_encoder_norm(mesh, state, dead_l);
  const std::span<const int64_t> ends{ends_r.const_data_ptr<int64_t>(), args.rows.size()};
  const std::vector<int64_t> drawn = draw(ends, dead, args.seed, state.step);
  std::vector<Start> starts;
  for (size_t i = 0; i < dead.size(); ++i) {
    if (dead[i] < dictionary.latents.begin || dead[i] >= dictionary.latents.end) continue;
    starts.push_back(
        {args.rows[static_cast<size_t>(drawn[i])], dead[i] - dictionary.latents.begin});
    out.of_shard.push_back(starts.back().latent);
    out.row_of_shard.push_back(starts.back().row);
  }
  agree(*mesh.world, [&] { write_rows(args, std::move(starts), encoder_norm, state); });
  reset_latents(out.of_shard, state);
  if (screen != nullptr) screen->refresh(dictionary.w_enc_ld);
  state.resampled_at = state.step;
  out.latents = static_cast<int64_t>(dead.size());
  out.distinct_rows =
      static_cast<int64_t>(std::unordered_set<int64_t>(drawn.begin(), drawn.end()).size());
  return out;
}

}  // namespace megadict
