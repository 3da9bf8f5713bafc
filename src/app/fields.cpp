#include "app/fields.h"

#include "kernels/isa.h"

namespace megadict {

namespace {

using enum OnResume;
using Fields = std::vector<Field>;

constexpr double kMostIndices = kMostLatents;

void add(Fields& all, Fields more) {
  all.insert(all.end(), more.begin(), more.end());
}

Fields data_fields(DataConfig& c) {
  return {
      {"data.path", &c.path, "", "folder or glob of activation shards"},
      {"data.eval_path", &c.eval_path, "", "held-out shards; default PATH/eval where it exists"},
      {"data.stage_dir", &c.stage_dir, "",
       "folder on a disk of the node: shards are copied there first and read there"},
      {"data.batch_size", &c.batch_size, "rows", "global batch", between(1, 1e9), fixed},
      {"data.micro_batch_size", &c.micro_batch_size, "rows",
       "part of the batch handled at once; 0 = all", between(0, 1e9), notice},
      {"data.scale", &c.scale, "", "every row is multiplied by this first", above(0), fixed},
      {"data.normalize", &c.normalize, "", "scale so that mean |x|^2 = 1 or mean |x| = sqrt(d)",
       one_of({"none", "unit_rms", "sqrt_d"}), fixed},
      {"data.center", &c.center, "", "subtract the sample mean", {}, fixed},
      {"data.max_norm_multiple", &c.max_norm_multiple, "x median norm",
       "rows with a larger norm are left out; 0 = off", at_least(0), fixed},
      {"data.tokens", &c.tokens, "rows", "training length; 0 = one pass", between(0, 1e15), notice},
      {"data.shuffle_buffer", &c.shuffle_buffer, "rows", "shuffling window of the whole mesh",
       between(1, 1e12), fixed},
      {"data.last_batch", &c.last_batch, "", "the ragged last batch of an epoch",
       one_of({"drop", "keep"}), fixed},
      {"data.queue", &c.queue, "micro-batches", "read ahead", between(1, 1024)},
  };
}

Fields model_fields(ModelConfig& c) {
  return {
      {"model.encoder", &c.encoder, "",
       "map from input to pre-activations; mlp, deep: behind hidden layers (B3, B4)",
       one_of({std::begin(kEncoders), std::end(kEncoders)}), fixed},
      {"model.activation", &c.activation, "", "how codes become sparse",
       one_of({"topk", "relu", "batchtopk", "jumprelu", "gated"}), fixed},
      {"model.decoder", &c.decoder, "",
       "tied: the encoder's weights transposed; deep: a hidden layer on top (B5)",
       one_of({std::begin(kDecoders), std::end(kDecoders)}), fixed},
      {"model.hidden", &c.hidden, "",
       "encoder = mlp, deep: widths of its hidden layers, as 1024 or 256,256; deep: the rows' "
       "width",
       anything(), fixed},
      {"model.decoder_norm",
       &c.decoder_norm,
       "",
       "decoder = deep: a LayerNorm after its ReLU",
       {},
       fixed},
      {"model.n_latents", &c.n_latents, "latents", "size of the dictionary; 0 = 32 x width",
       between(0, kMostIndices), fixed},
      {"model.k", &c.k, "latents", "active per row; batchtopk: on average of a batch",
       between(1, 65536), fixed},
      {"model.l1_coefficient", &c.l1_coefficient, "",
       "relu, gated: weight of sum |z| |w_dec|, of gates, beside |x - xhat|^2", at_least(0), fixed},
      {"model.l1_warmup_steps", &c.l1_warmup_steps, "steps",
       "relu, gated, jumprelu: penalty rises from 0", between(0, 1e12), fixed},
      {"model.jumprelu_threshold", &c.jumprelu_threshold, "", "at the start, of every latent",
       between(0, 1e6), fixed},
      {"model.jumprelu_log",
       &c.jumprelu_log,
       "",
       "learn thresholds' logarithms, as B8 does: for runs of 10^5 steps",
       {},
       fixed},
      {"model.jumprelu_bandwidth", &c.jumprelu_bandwidth, "",
       "width around a threshold in which it learns", between(1e-6, 1e6), fixed},
      {"model.l0_coefficient", &c.l0_coefficient, "",
       "jumprelu: weight of (L0 / l0_target - 1)^2, or of L0, beside |x - xhat|^2", between(0, 1e6),
       fixed},
      {"model.l0_target", &c.l0_target, "latents", "jumprelu: L0 to arrive at; 0 = none",
       between(0, kMostIndices), fixed},
      {"model.matryoshka", &c.matryoshka, "latents",
       "prefixes that reconstruct alone, as 64,0.25,1024; below 1 = shares", anything(), fixed},
      {"model.matryoshka_weights", &c.matryoshka_weights, "",
       "of the prefixes in the loss; default: alike, sum 1", anything(), fixed},
      {"model.b_dec_start", &c.b_dec_start, "", "decoder bias at the start, of the sample",
       one_of({std::begin(kBDecStarts), std::end(kBDecStarts)}), fixed},
      {"model.init_from", &c.init_from, "", "start from this run or checkpoint folder's weights",
       anything(), fixed},
  };
}

Fields optim_fields(OptimConfig& c) {
  return {
      {"optim.name", &c.name, "", "optimiser", one_of({"adam", "adam_b1_0", "sign_sgd"}), fixed},
      {"optim.lr", &c.lr, "",
       "learning rate; field = 2e-4 / sqrt(n_latents / 2^14), auto = more for short runs",
       or_word({.low = 0, .high = 10, .low_excluded = true},
               {{"auto", kAutoRate}, {"field", kFieldRate}}),
       notice},
      {"optim.beta1", &c.beta1, "", "decay of Adam's first moment", from_to_below(0, 1), notice},
      {"optim.beta2", &c.beta2, "", "decay of Adam's second moment", from_to_below(0, 1), notice},
      {"optim.eps", &c.eps, "", "Adam's epsilon beside gradients summed over the batch",
       at_least(1e-37), notice},
      {"optim.warmup_steps", &c.warmup_steps, "steps", "linear from 0; -1 = 1000 or 5 % of the run",
       between(-1, 1e12), notice},
      {"optim.decay_fraction", &c.decay_fraction, "", "last part of the run, linear to 0",
       between(0, 1), notice},
      {"optim.clip_norm", &c.clip_norm, "", "largest global norm of the mean gradient; 0 = off",
       at_least(0), notice},
      {"optim.ema", &c.ema, "", "decay of an averaged copy of the weights; 0 = off",
       from_to_below(0, 1), notice},
      {"optim.hidden_decay", &c.hidden_decay, "",
       "of hidden layers' weights alone, w <- w - lr decay w; auto = 5e-4 where encoder or decoder "
       "is deep, else 0",
       or_word({.low = 0, .high = 1}, {{"auto", kAutoDecay}}), notice},
      {"optim.train_norms",
       &c.train_norms,
       "",
       "a LayerNorm's gain and shift are trained",
       {},
       notice},
  };
}

Fields dead_fields(DeadConfig& c) {
  return {
      {"dead.auxk_alpha", &c.auxk_alpha, "", "weight of the AuxK loss of dead latents; 0 = off",
       between(0, 1e6), notice},
      {"dead.k_aux", &c.k_aux, "latents", "dead latents active per row in AuxK; 0 = width / 2",
       between(0, kMostIndices), notice},
      {"dead.auxk_every", &c.auxk_every, "steps", "AuxK acts in every m-th step only",
       between(1, 1e9), notice},
      {"dead.preact_coefficient", &c.preact_coefficient, "",
       "jumprelu: weight of sum over dead latents of (threshold - v) |w_dec|; 0 = off",
       between(0, 1e6), notice},
      {"dead.auxk_stratum", &c.auxk_stratum, "latents",
       "AuxK: at most so many dead latents compete in a step, others in another; 0 = all, exact",
       between(0, kMostIndices), notice},
      {"dead.resample_steps", &c.resample_steps, "",
       "dead latents start anew from badly reconstructed rows: never, every:N or steps N,N,...",
       anything(), notice},
      {"dead.resample_rows", &c.resample_rows, "rows",
       "whose losses the rows are drawn by, in whole batches", between(1, kMostResampleRows),
       notice},
      {"dead.resample_scale", &c.resample_scale, "",
       "new encoder rows' norm, beside the mean of those that fire", between(0, 100), notice},
      {"dead.resample_warmup_steps", &c.resample_warmup_steps, "steps",
       "after a resampling the rate rises from 0 again", between(0, 1e12), notice},
      {"dead.window_tokens", &c.window_tokens, "rows",
       "dead = not fired for so long; 0 = 1e7 or data.tokens / 10", between(0, 1e15), notice},
  };
}

Fields kernel_fields(KernelConfig& c) {
  return {
      {"kernels.encode", &c.encode, "",
       "with k: exact fp32, or a screen in few bits and fp32 among what it lets pass; auto "
       "measures",
       one_of({"auto", "fp32", "screen_int8", "screen_bf16"}), notice},
      {"kernels.isa", &c.isa, "",
       "instructions of the hand-written kernels; auto = the best that every rank has",
       one_of(isa_choices()), notice},
      {"kernels.set", &c.set, "",
       "hand-written cpu loops, or plain tensor operations (slow on a cpu: the reference); auto = "
       "cpu, on a GPU tensor",
       one_of({"auto", "cpu", "tensor"}), notice},
  };
}

Fields run_fields(RunConfig& c) {
  return {
      {"run.dir", &c.dir, "", "folder of the run"},
      {"run.seed", &c.seed, "", "of every random number", at_least(0), fixed},
      {"run.resume", &c.resume, "", "never, auto (newest checkpoint of run.dir) or a checkpoint"},
      {"run.device", &c.device, "", "where tensors live", one_of({"cpu", "cuda"})},
      {"run.threads", &c.threads, "threads", "per rank; 0 = cpus / ranks that share them",
       between(0, 4096)},
      {"run.deterministic",
       &c.deterministic,
       "",
       "the same weights on every mesh and any threads, bit for bit; slower",
       {},
       notice},
      {"run.check_memory", &c.check_memory, "",
       "refuse a run that the node's free memory cannot hold"},
  };
}

Fields interval_fields(LogConfig& log, CheckpointConfig& checkpoint, EvalConfig& eval) {
  return {
      {"log.every_steps", &log.every_steps, "steps", "between two lines", between(1, 1e12)},
      {"checkpoint.every_steps", &checkpoint.every_steps, "steps",
       "between two; 0 = only by time and at the end", between(0, 1e12)},
      {"checkpoint.every_minutes", &checkpoint.every_minutes, "minutes",
       "between two; 0 = not by time", between(0, 1e6)},
      {"checkpoint.keep", &checkpoint.keep, "checkpoints", "older ones are removed",
       between(1, 1e6)},
      {"checkpoint.keep_ratio", &checkpoint.keep_ratio, "",
       "besides, one per such a factor in steps is kept for ever, as 2: 1000, 2000, 4000; 0 = off",
       between(0, 1e6)},
      {"eval.every_steps", &eval.every_steps, "steps", "between two; 0 = only at the end",
       between(0, 1e12)},
      {"eval.tokens", &eval.tokens, "rows", "held-out rows to use; 0 = all", between(0, 1e15)},
      {"eval.truth", &eval.truth, "", "folder of `data synth` whose dictionary is to be found"},
  };
}

Fields mesh_and_debug_fields(MeshConfig& mesh, DebugConfig& debug) {
  return {
      {"mesh.data", &mesh.data, "ranks", "parts of the batch; 0 = auto", between(0, 1048576)},
      {"mesh.feature", &mesh.feature, "ranks", "parts of the dictionary; 0 = auto, this axis first",
       between(0, 1048576)},
      {"mesh.exchange", &mesh.exchange, "",
       "what crosses the data axis: row gradients, or tokens and codes; auto = the fewer bytes",
       one_of({"auto", "gradients", "tokens"})},
      {"mesh.overlap", &mesh.overlap, "",
       "a micro-batch's messages move while the next are encoded; the same bits, more memory"},
      {"debug.watchdog_s", &debug.watchdog_s, "s", "a longer collective ends the job; 0 = never",
       between(0, 1e7)},
      {"debug.check_collectives", &debug.check_collectives, "",
       "ranks compare every collective before it starts"},
      {"debug.hang_rank", &debug.hang_rank, "rank", "stops on purpose; -1 = none",
       between(-1, 1048576)},
      {"debug.hang_at", &debug.hang_at, "", "in this collective: NAME or NAME:STEP"},
  };
}

}  // namespace

std::vector<std::string> isa_choices() {
  std::vector<std::string> names = {"auto"};
  for (const IsaFact& fact : all_isas()) names.emplace_back(fact.name);
  return names;
}

std::vector<Field> fields_of(Config& config) {
  Fields all;
  add(all, data_fields(config.data));
  add(all, model_fields(config.model));
  add(all, optim_fields(config.optim));
  add(all, dead_fields(config.dead));
  add(all, kernel_fields(config.kernels));
  add(all, run_fields(config.run));
  add(all, interval_fields(config.log, config.checkpoint, config.eval));
  add(all, mesh_and_debug_fields(config.mesh, config.debug));
  return all;
}

}  // namespace megadict
