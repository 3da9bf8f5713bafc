#include "app/settings.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "app/fields.h"
#include "app/plan.h"
#include "base/error.h"
#include "kernels/screen_product.h"
#include "model/activations.h"
#include "model/hidden.h"
#include "model/matryoshka.h"
#include "train/resample.h"
#include "train/schedule.h"

namespace megadict {

namespace {

constexpr const char* kResolved = "resolved";

[[noreturn]] void refuse(const std::string& what, const std::string& hint = "") {
  fail_agreed(ExitCode::usage, what, hint);
}

template <class T>
void resolve(Settings& settings, const char* name, T& member, T value) {
  member = value;
  settings.sources[name] = kResolved;
}

void check_batch(const DataConfig& data, const DataFacts& facts) {
  const bool drops = data.last_batch == "drop";
  if (facts.rows > 0 && drops && data.batch_size > facts.rows)
    refuse(fmt::format("data.batch_size = {} is more than the {} rows of the data set, and "
                       "data.last_batch = drop leaves no step to take",
                       data.batch_size, facts.rows),
           "a smaller data.batch_size, or data.last_batch = keep");
  if (data.tokens > 0 && drops && data.tokens < data.batch_size)
    refuse(fmt::format("data.tokens = {} is less than data.batch_size = {}: no step to take",
                       data.tokens, data.batch_size));
}

// Hidden layers: what they do not go with. `width`: of the rows, 0 = not known yet.
void check_hidden(const Config& config, int64_t width) {
  const ModelConfig& model = config.model;
  const auto conflict = [&](const std::string& what, const std::string& why,
                            const std::string& hint) {
    refuse(fmt::format("model.encoder = {} and model.decoder = {} with {}: {}", model.encoder,
                       model.decoder, what, why),
           hint);
  };
  const bool front = has_front(model), back = has_back(model);
  if (!front && !model.hidden.empty())
    refuse(fmt::format("model.hidden = {} with model.encoder = linear, which has no hidden layer",
                       model.hidden),
           "model.encoder = mlp, or deep");
  if (!back && model.decoder_norm)
    refuse(
        fmt::format("model.decoder_norm with model.decoder = {}; it is for deep", model.decoder));
  if (!front && !back) return;
  if (front) hidden_widths(model, width);
  if (model.decoder == "tied" && model.encoder == "mlp")
    conflict("each other", "a tied decoder's rows are as wide as the data's",
             "model.decoder = linear");
  if (config.run.deterministic)
    conflict("run.deterministic", "dense products depend on their shape",
             "run.deterministic = false");
  if (config.mesh.exchange == "tokens")
    conflict("mesh.exchange = tokens", "what the encoder sees is not what the shards hold",
             "mesh.exchange = gradients");
  if (config.dead.preact_coefficient > 0 && front)
    conflict("dead.preact_coefficient > 0", "it would not reach the hidden layers",
             "dead.preact_coefficient = 0");
  if (!back) return;
  const ActivationFn& activation = activation_named(model.activation);
  const char* why = "what the decoder's rows add up to is no reconstruction yet";
  if (activation.has_gates) conflict("model.activation = gated", why, "model.activation = relu");
  if (!model.matryoshka.empty()) conflict("model.matryoshka", why, "model.matryoshka = \"\"");
  if (resample_steps(config.dead.resample_steps).first() > 0)
    conflict("dead.resample_steps", why, "dead.resample_steps = never");
  if (!config.eval.truth.empty())
    conflict("eval.truth", "its rows are no directions of the data", "eval.truth = \"\"");
}

void resolve_model(Settings& settings, const DataFacts& facts) {
  ModelConfig& model = settings.config.model;
  check_hidden(settings.config, facts.width);
  OptimConfig& optim = settings.config.optim;
  const bool deep = model.encoder == "deep" || has_back(model);
  if (optim.hidden_decay == kAutoDecay)
    resolve(settings, "optim.hidden_decay", optim.hidden_decay, deep ? 5e-4 : 0);
  double& alpha = settings.config.dead.auxk_alpha;
  if (has_back(model) && alpha > 0 && source_of(settings, "dead.auxk_alpha") == "default")
    resolve(settings, "dead.auxk_alpha", alpha, 0.0);
  if (model.n_latents == 0)
    resolve<int64_t>(settings, "model.n_latents", model.n_latents, 32 * facts.width);
  if (activation_named(model.activation).has_k && model.k > model.n_latents)
    refuse(fmt::format("model.k = {} is more than model.n_latents = {}; allowed: 1 to {}", model.k,
                       model.n_latents, model.n_latents));
  levels_of(model, model.n_latents);
}

// Two digits: nobody can tell rates apart better.
double rounded_rate(double rate) {
  return std::stod(fmt::format("{:.1e}", rate));
}

void resolve_optim(Settings& settings, const DataFacts& facts) {
  OptimConfig& optim = settings.config.optim;
  const int64_t latents = settings.config.model.n_latents;
  // Thresholds hear of a row now and then: a first moment would go on without them (B7, B8).
  if (!activation_named(settings.config.model.activation).parameters.empty() &&
      source_of(settings, "optim.beta1") == "default")
    resolve(settings, "optim.beta1", optim.beta1, 0.0);
  if (optim.lr == kFieldRate) resolve(settings, "optim.lr", optim.lr, field_rate(latents));
  if (facts.steps <= 0) return;
  if (optim.lr == kAutoRate)
    resolve(settings, "optim.lr", optim.lr,
            rounded_rate(auto_rate(latents, settings.config.data.batch_size, facts.steps)));
  if (optim.warmup_steps == -1)
    resolve<int64_t>(settings, "optim.warmup_steps", optim.warmup_steps,
                     std::min<int64_t>(1000, facts.steps / 20));
  // One that was resolved for a longer run, before a resume, is kept: the schedule takes it.
  if (optim.warmup_steps > facts.steps && source_of(settings, "optim.warmup_steps") != "resolved")
    refuse(fmt::format("optim.warmup_steps = {} is more than the {} steps of the run",
                       optim.warmup_steps, facts.steps));
}

void resolve_dead(Settings& settings, const DataFacts& facts) {
  DeadConfig& dead = settings.config.dead;
  const int64_t latents = settings.config.model.n_latents;
  if (dead.k_aux > latents)
    refuse(fmt::format("dead.k_aux = {} is more than model.n_latents = {}; allowed: 0 to {}",
                       dead.k_aux, latents, latents));
  const bool strata = dead.auxk_alpha > 0 && dead.auxk_stratum > 0;
  if (dead.k_aux == 0)
    resolve<int64_t>(settings, "dead.k_aux", dead.k_aux,
                     std::clamp<int64_t>(facts.width / 2, 1, latents));
  if (strata && dead.auxk_stratum < dead.k_aux)
    refuse(
        fmt::format("dead.auxk_stratum = {} is less than dead.k_aux = {}; allowed: 0 (all dead "
                    "latents), or dead.k_aux or more",
                    dead.auxk_stratum, dead.k_aux));
  if (has_back(settings.config.model) && dead.auxk_alpha > 0)
    refuse(
        fmt::format("dead.auxk_alpha = {:g} with model.decoder = deep, whose rows are not in the "
                    "data's space",
                    dead.auxk_alpha),
        "dead.auxk_alpha = 0");
  const int64_t tokens = settings.config.data.tokens;
  if (dead.window_tokens == 0 && tokens > 0)
    resolve<int64_t>(settings, "dead.window_tokens", dead.window_tokens,
                     std::clamp<int64_t>(tokens / 10, 1, 10'000'000));
}

void resolve_mesh_fields(Settings& settings, const DataFacts& facts) {
  MeshConfig& mesh = settings.config.mesh;
  const MeshConfig resolved = resolve_mesh(mesh, facts.ranks);
  if (mesh.data == 0) resolve(settings, "mesh.data", mesh.data, resolved.data);
  if (mesh.feature == 0) resolve(settings, "mesh.feature", mesh.feature, resolved.feature);
  const int64_t latents = settings.config.model.n_latents;
  if (mesh.feature > latents)
    refuse(
        fmt::format("mesh.feature = {} is more than model.n_latents = {}: a rank would own no "
                    "latent",
                    mesh.feature, latents));
  if (mesh.exchange == "auto") {
    const PlanInput in = plan_input(settings.config, facts.width, facts.sample_bytes, facts.rows);
    const char* fewer = cheaper_exchange(in, mesh.data, mesh.feature);
    resolve(settings, "mesh.exchange", mesh.exchange,
            std::string(settings.config.run.deterministic ? "tokens" : fewer));
  }
  const int hang_rank = settings.config.debug.hang_rank;
  if (hang_rank >= facts.ranks)
    refuse(fmt::format("debug.hang_rank = {} with {} rank(s); allowed: -1 to {}", hang_rank,
                       facts.ranks, facts.ranks - 1));
}

// What has no version with the same bits on every mesh.
void check_deterministic(const Config& config) {
  const auto conflict = [](const std::string& what, const std::string& why, const char* hint) {
    refuse(fmt::format("run.deterministic with {}: {}", what, why), hint);
  };
  if (config.kernels.set == "tensor")
    conflict("kernels.set = tensor", "its products depend on their shape", "kernels.set = auto");
  const std::string& encode = config.kernels.encode;
  if (config.run.device != "cpu")
    conflict("run.device = " + config.run.device, "its products depend on their shape",
             "run.device = cpu");
  if (encode != "auto" && encode != "fp32")
    conflict("kernels.encode = " + encode, "what a screen lets pass depends on the shard",
             "kernels.encode = fp32");
  if (config.optim.clip_norm > 0)
    conflict("optim.clip_norm > 0", "the norm is a sum over ranks", "optim.clip_norm = 0");
  if (config.mesh.exchange == "gradients")
    conflict("mesh.exchange = gradients", "their sum depends on the data axis",
             "mesh.exchange = tokens");
}

}  // namespace

void check_config(const Config& config) {
  Config checked = config;  // ranges of values that did not pass set_field
  for (const Field& field : fields_of(checked)) check_field(field, "config");
  const DataConfig& data = config.data;
  if (data.micro_batch_size > data.batch_size)
    refuse(
        fmt::format("data.micro_batch_size = {} is more than data.batch_size = {}; allowed: 0 "
                    "(the batch) to {}",
                    data.micro_batch_size, data.batch_size, data.batch_size));
  if (data.max_norm_multiple > 0 && data.max_norm_multiple < 1)
    refuse(
        fmt::format("data.max_norm_multiple = {:g} would leave out half of the rows or more; "
                    "allowed: 0 (off), or 1 or more",
                    data.max_norm_multiple));
  const double ratio = config.checkpoint.keep_ratio;
  if (ratio != 0 && ratio < 1.01)
    refuse(fmt::format("checkpoint.keep_ratio = {:g}; allowed: 0 (off), or 1.01 and more", ratio));
  check_batch(data, {});
  const ModelConfig& model = config.model;
  check_hidden(config, 0);
  const ActivationFn& activation = activation_named(model.activation);
  if (model.n_latents > 0 && activation.has_k && model.k > model.n_latents)
    refuse(fmt::format("model.k = {} is more than model.n_latents = {}; allowed: 1 to {}", model.k,
                       model.n_latents, model.n_latents));
  const bool too_many =
      model.n_latents > 0 && model.l0_target > static_cast<double>(model.n_latents);
  if (activation.has_l0 && model.l0_target != 0 && (model.l0_target < 0.01 || too_many))
    refuse(fmt::format("model.l0_target = {:g}; allowed: 0 (none), or .01 to model.n_latents",
                       model.l0_target));
  const bool vanishes = model.jumprelu_threshold < std::numeric_limits<float>::min();
  if (model.jumprelu_log && (activation.name != "jumprelu" || vanishes))
    refuse(
        fmt::format("model.jumprelu_log with model.activation = {} and model.jumprelu_threshold "
                    "= {:g}; allowed: jumprelu, at least 1.2e-38",
                    model.activation, model.jumprelu_threshold));
  if (activation.whole_batch && data.micro_batch_size > 0 &&
      data.micro_batch_size < data.batch_size)
    refuse(fmt::format("data.micro_batch_size = {} with model.activation = {}, which selects over "
                       "the whole data.batch_size = {}",
                       data.micro_batch_size, model.activation, data.batch_size),
           "data.micro_batch_size = 0, and more ranks where the batch does not fit");
  if (resample_steps(config.dead.resample_steps).first() > 0 &&
      resample_rule(model.activation) == nullptr)
    refuse(fmt::format("dead.resample_steps = {} with model.activation = {}, whose latents cannot "
                       "start anew",
                       config.dead.resample_steps, model.activation),
           "dead.resample_steps = never");
  const bool screened = screen_named(config.kernels.encode) != nullptr;
  if (screened && (!activation.has_k || config.run.device != "cpu"))
    refuse(fmt::format("kernels.encode = {} with model.activation = {} and run.device = {}; "
                       "it is for topk and batchtopk on a cpu",
                       config.kernels.encode, model.activation, config.run.device),
           "kernels.encode = auto");
  if (screened && config.kernels.set == "tensor")
    refuse(fmt::format("kernels.encode = {} with kernels.set = tensor, which has no screen",
                       config.kernels.encode),
           "kernels.encode = auto");
  if (config.kernels.set == "cpu" && config.run.device != "cpu")
    refuse(fmt::format("kernels.set = cpu with run.device = {}", config.run.device),
           "kernels.set = auto");
  if (config.mesh.exchange == "tokens" && config.optim.clip_norm > 0)
    refuse(
        "mesh.exchange = tokens with optim.clip_norm > 0: clipping needs gradients before rows "
        "move",
        "mesh.exchange = gradients");
  if (config.run.deterministic) check_deterministic(config);
  const DebugConfig& debug = config.debug;
  if (!debug.hang_at.empty() && debug.hang_rank < 0)
    refuse("debug.hang_at is set and debug.hang_rank is -1: which rank is to hang?");
}

void check_against_data(Settings& settings, const DataFacts& facts) {
  DataConfig& data = settings.config.data;
  if (data.tokens == 0 && facts.tokens > 0)
    resolve<int64_t>(settings, "data.tokens", data.tokens, facts.tokens);
  check_batch(data, facts);
  if (data.micro_batch_size == 0)
    resolve<int64_t>(settings, "data.micro_batch_size", data.micro_batch_size, data.batch_size);
  resolve_model(settings, facts);
  resolve_optim(settings, facts);
  resolve_dead(settings, facts);
  resolve_mesh_fields(settings, facts);
}

std::vector<std::string> remarks_on(const Settings& settings, const DataFacts& facts) {
  const Config& config = settings.config;
  std::vector<std::string> remarks;
  const auto unused = [&](const char* name, const std::string& because) {
    const std::string source = source_of(settings, name);
    if (source == "default" || source == kResolved) return;
    remarks.push_back(fmt::format("{} ({}) has no effect: {}", name, source, because));
  };
  const std::string activation = "model.activation = " + config.model.activation;
  const ActivationFn& chosen = activation_named(config.model.activation);
  if (!chosen.has_l1) unused("model.l1_coefficient", activation);
  if (!chosen.has_l1 && !chosen.has_l0) unused("model.l1_warmup_steps", activation);
  if (!chosen.has_l0)
    for (const char* name :
         {"model.jumprelu_threshold", "model.jumprelu_log", "model.jumprelu_bandwidth",
          "model.l0_coefficient", "model.l0_target", "dead.preact_coefficient"})
      unused(name, activation);
  else if (config.data.normalize == "none")
    remarks.emplace_back(
        "data.normalize = none: jumprelu's thresholds and their bandwidth are meant for rows of "
        "mean |x|^2 = 1 (data.normalize = unit_rms)");
  if (!chosen.has_k) unused("model.k", activation);
  if (!config.model.init_from.empty())
    unused("model.b_dec_start", "model.init_from gives all weights");
  if (!has_front(config.model) && !has_back(config.model))
    for (const char* name : {"optim.hidden_decay", "optim.train_norms"})
      unused(name, "there is no hidden layer");
  for (const char* name : {"dead.k_aux", "dead.auxk_every", "dead.auxk_stratum"})
    if (config.dead.auxk_alpha == 0) unused(name, "dead.auxk_alpha = 0");
  const int64_t resampling = resample_steps(config.dead.resample_steps).first();
  for (const char* name :
       {"dead.resample_rows", "dead.resample_scale", "dead.resample_warmup_steps"})
    if (resampling == 0) unused(name, "dead.resample_steps = never");
  if (facts.steps > 0 && resampling >= facts.steps)
    unused("dead.resample_steps", fmt::format("the run has {} steps", facts.steps));
  if (config.data.micro_batch_size == config.data.batch_size)
    unused("mesh.overlap", "data.micro_batch_size = data.batch_size");
  else if (config.run.device != "cpu")
    unused("mesh.overlap", "run.device = " + config.run.device);
  else if (facts.ranks == 1)
    unused("mesh.overlap", "there is one rank");
  const int64_t l1_warmup = config.model.l1_warmup_steps;
  if ((chosen.has_l1 || chosen.has_l0) && facts.steps > 0 && l1_warmup > facts.steps)
    remarks.push_back(
        fmt::format("model.l1_warmup_steps = {} is more than the {} steps of the "
                    "run: the penalty never reaches its full weight",
                    l1_warmup, facts.steps));
  return remarks;
}

std::string source_of(const Settings& settings, const std::string& name) {
  const auto found = settings.sources.find(name);
  return found == settings.sources.end() ? "default" : found->second;
}

}  // namespace megadict
