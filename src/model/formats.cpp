#include "model/formats.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "io/file.h"
#include "io/staged_folder.h"
#include "model/activations.h"
#include "model/foreign_files.h"
#include "model/forward.h"

namespace megadict {
namespace {

constexpr double kRoundedNorm = 1e-4;  // rows that are unit but for rounding

const Held* held_by(const Format& format, const std::string& activation) {
  for (const Held& held : format.held)
    if (held.activation == activation) return &held;
  return nullptr;
}

std::string names_held(const Format& format) {
  std::string names;
  for (const Held& held : format.held)
    names += (names.empty() ? "" : ", ") + std::string(held.activation);
  return names;
}

std::string hint_for(const PlainDictionary& plain, const Format& refused, ExportScale scale) {
  if (scale == ExportScale::trained && problem_of(refused, plain, ExportScale::unit).empty())
    return "--scale unit";
  for (const Format& format : all_formats())
    if (problem_of(format, plain, scale).empty())
      return fmt::format("--format {} can hold it", format.name);
  return "keep the native checkpoint; no format here holds it";
}

void check_finite(const PlainDictionary& plain, const std::string& what) {
  for (const auto& [name, member] : tensors_of(plain.activation))
    if (!at::isfinite(plain.*member).all().item<bool>())
      fail(ExitCode::bad_data, fmt::format("{}: {} holds values that are not finite", what, name));
}

// A threshold may come back from its logarithm.
bool same_values(std::string_view name, const at::Tensor& a, const at::Tensor& b) {
  if (name != "threshold") return at::equal(a, b);
  return a.sizes() == b.sizes() && at::allclose(a, b, /*rtol=*/1e-5, /*atol=*/0);
}

// What a reader of the folder gets must be what was meant, bit for bit.
void check_written(const PlainDictionary& meant, const Format& format, const std::string& folder) {
  const PlainDictionary got = format.read(folder);
  const auto differ = [&](std::string_view what) {
    fail(ExitCode::error,
         fmt::format("export as {}: reading the files back gives another {}", format.name, what));
  };
  if (meant.n != got.n || meant.d != got.d) differ("shape");
  if (meant.activation != got.activation) differ("activation");
  if (meant.activation == "topk" && meant.k != got.k) differ("k");
  if (meant.subtracts_b_dec != got.subtracts_b_dec || got.selects_by_norm) differ("convention");
  if (got.normalization.scale != 1.0 || !got.normalization.mean.empty()) differ("normalisation");
  for (const auto& [name, member] : tensors_of(meant.activation))
    if (!same_values(name, meant.*member, got.*member)) differ(name);
}

}  // namespace

double unit_decoder_rows(Dictionary& dictionary) {
  constexpr double kRounding = 1e-5;
  if (dictionary.tied() || dictionary.latents.empty()) return 0;
  const at::Tensor norm = norms_of_rows(dictionary.w_dec_ld);
  const at::Tensor off = (norm - 1).abs();
  // Row by row, so that a dictionary read in parts comes out the same. A zero row has no direction:
  // it stays zero, and so do its codes.
  const at::Tensor factor = at::where(off.gt(kRounding), norm, at::ones_like(norm)).to(at::kFloat);
  dictionary.w_dec_ld.div_(factor.clamp_min(1e-30).unsqueeze(1));
  dictionary.w_enc_ld.mul_(factor.unsqueeze(1));
  dictionary.b_enc_l.mul_(factor);
  const auto extra = activation_named(dictionary.config.activation).parameters;
  for (size_t i = 0; i < extra.size(); ++i)
    if (extra[i].pre_activation) dictionary.extra_l[i].mul_(factor);
  return off.max().item<double>();
}

namespace {

struct PerLatent {
  at::Tensor *ours, *theirs;
};

// What both hold of each latent under the same name; in `ours` there is room for every parameter of
// the activation.
std::vector<PerLatent> per_latent(Dictionary& ours, PlainDictionary& theirs) {
  const ActivationFn& activation = activation_named(ours.config.activation);
  ours.extra_l.resize(activation.parameters.size());
  std::vector<PerLatent> out;
  for (const LatentTensor& tensor : latent_tensors(ours.config.activation)) {
    if (tensor.name == activation.bias) out.push_back({&ours.b_enc_l, &(theirs.*tensor.member)});
    for (size_t i = 0; i < activation.parameters.size(); ++i)
      if (tensor.name == activation.parameters[i].name)
        out.push_back({&ours.extra_l[i], &(theirs.*tensor.member)});
  }
  return out;
}

}  // namespace

PlainDictionary plain_of(SavedDictionary saved) {
  Dictionary& from = saved.dictionary;
  if (!from.hidden.empty())
    fail_agreed(
        ExitCode::usage,
        fmt::format("a dictionary with model.encoder = {} and model.decoder = {} has hidden "
                    "layers, which no other tool's files hold",
                    from.config.encoder, from.config.decoder));
  PlainDictionary out;
  out.encoder = from.config.encoder;
  out.decoder = from.config.decoder;
  out.activation = from.config.activation;
  out.n = from.n;
  out.d = from.d;
  out.k = activation_named(out.activation).has_k ? std::min(from.config.k, from.n) : 0;
  out.w_enc_nd = std::move(from.w_enc_ld);
  out.w_dec_nd = std::move(from.w_dec_ld);
  for (const auto& [ours, theirs] : per_latent(from, out)) *theirs = std::move(*ours);
  out.b_dec_d = std::move(from.b_dec_d);
  if (activation_named(out.activation).whole_batch)
    out.threshold_n = at::full({out.n}, from.threshold, at::kFloat);
  out.normalization = std::move(saved.normalization);
  out.step = saved.step;
  out.tokens = saved.tokens;
  out.source_model = saved.source_model;
  out.hook = saved.hook;
  out.layer = saved.layer;
  return out;
}

namespace {

// Thresholds as this program's activations have them: never below 0, where ReLU decides anyway; one
// for all is batchtopk's, none relu.
void simplify_thresholds(PlainDictionary& plain) {
  constexpr double kNone = 1e-20;  // what a format that knows no zero may write
  plain.threshold_n = plain.threshold_n.clamp_min(0);
  const double first = plain.threshold_n[0].item<double>();
  const bool alike = plain.threshold_n.eq(first).all().item<bool>();
  const bool is_relu = plain.activation == "jumprelu" && first <= kNone && plain.k == 0;
  plain.activation = !alike ? "jumprelu" : is_relu ? "relu" : "batchtopk";
}

}  // namespace

SavedDictionary saved_of(PlainDictionary plain, const std::string& path) {
  SavedDictionary out;
  Dictionary& to = out.dictionary;
  if (plain.threshold_n.defined()) {
    simplify_thresholds(plain);
    if (plain.activation == "batchtopk") to.threshold = plain.threshold_n[0].item<double>();
  }
  const auto known = all_activations();
  if (std::none_of(known.begin(), known.end(),
                   [&](const ActivationFn& one) { return one.name == plain.activation; }))
    fail(ExitCode::bad_data, fmt::format("cannot read '{}': the activation '{}' has no counterpart "
                                         "here",
                                         path, plain.activation));
  to.n = plain.n;
  to.d = plain.d;
  to.latents = {0, plain.n};
  to.config.activation = plain.activation;
  to.config.n_latents = plain.n;
  to.config.k = plain.k;
  to.w_enc_ld = std::move(plain.w_enc_nd);
  to.w_dec_ld = std::move(plain.w_dec_nd);
  for (const auto& [ours, theirs] : per_latent(to, plain)) *ours = std::move(*theirs);
  to.b_dec_d = std::move(plain.b_dec_d);
  out.normalization = std::move(plain.normalization);
  out.step = plain.step;
  out.tokens = plain.tokens;
  out.source_model = plain.source_model;
  out.hook = plain.hook;
  out.layer = plain.layer;
  return out;
}

std::span<const Format> all_formats() {
  static const Format formats[] = {kSaelensFormat,  kSparsifyFormat, kDictionaryLearningFormat,
                                   kOpenmossFormat, kOpenaiFormat,   kGemmaNpzFormat};
  return formats;
}

const Format& format_named(const std::string& name) {
  std::vector<std::string> names;
  for (const Format& format : all_formats()) {
    if (format.name == name) return format;
    names.emplace_back(format.name);
  }
  const std::string near = nearest_name(name, names);
  fail_agreed(
      ExitCode::usage, fmt::format("there is no format '{}'", name),
      near.empty() ? fmt::format("{}", fmt::join(names, ", ")) : "did you mean " + near + "?");
}

std::string problem_of(const Format& format, const PlainDictionary& plain, ExportScale scale) {
  const auto cannot = [&](const char* what, const std::string& which, const std::string& why) {
    return fmt::format("cannot write {} '{}' as {}: {}", what, which, format.name, why);
  };
  if (plain.encoder != "linear")
    return cannot("encoder", plain.encoder, "the format holds one linear encoder");
  if (plain.decoder != "linear" && plain.decoder != "tied")
    return cannot("decoder", plain.decoder, "the format holds one linear decoder");
  const Held* held = held_by(format, plain.activation);
  if (held == nullptr)
    return cannot("activation", plain.activation, "the format holds " + names_held(format));
  if (format.unit_only && scale == ExportScale::trained)
    return cannot("scale", "trained", "the format's decoder rows are unit");
  if (!format.unit_rows || scale != ExportScale::unit) return "";
  const bool selects = held->as == "topk" || held->as == "batchtopk";
  if (selects && !plain.selects_by_norm && off_unit(plain) > kRoundedNorm)
    return cannot("activation", plain.activation,
                  "the format's decoder rows are unit, this dictionary's are not, and making them "
                  "so would change what is selected");
  return "";
}

std::string problem_of(const Format& format, const SavedDictionary& saved, ExportScale scale) {
  return problem_of(format, plain_of(saved), scale);
}

void export_dictionary(PlainDictionary plain, const Format& format, ExportScale scale,
                       const std::string& folder) {
  const std::string problem = problem_of(format, plain, scale);
  if (!problem.empty()) fail_agreed(ExitCode::usage, problem, hint_for(plain, format, scale));
  StagedFolder making(folder);
  const Held& held = *held_by(format, plain.activation);
  const ExportNote note{scale, plain.normalization.scale, plain.activation};
  const bool unit_rows = format.unit_rows && scale == ExportScale::unit;
  const FoldTo to{std::string(held.as), scale, unit_rows, held.subtracts_b_dec,
                  format.least_threshold};
  progress("export: folding");
  const PlainDictionary out = folded(std::move(plain), to);
  check_finite(out, "cannot export");
  progress("export: writing");
  format.write(out, note, making.path());
  progress("export: reading back what was written");
  check_written(out, format, making.path());
  making.commit();
}

void export_dictionary(SavedDictionary saved, const Format& format, ExportScale scale,
                       const std::string& folder) {
  if (saved.dictionary.latents.size() != saved.dictionary.n)
    fail(ExitCode::error, "export: one process must hold all latents");
  export_dictionary(plain_of(std::move(saved)), format, scale, folder);
}

const Format* foreign_format(const std::string& path) {
  for (const Format& format : all_formats())
    if (format.recognises(path)) return &format;
  return nullptr;
}

PlainDictionary load_plain(const std::string& path, const Format* format) {
  if (format == nullptr) format = foreign_format(path);
  if (format == nullptr)
    fail(ExitCode::bad_data, fmt::format("'{}' is no dictionary of a known format", path),
         "saelens: cfg.json and sae_weights.safetensors; sparsify: cfg.json and sae.safetensors "
         "(in a hookpoint's folder); dictionary_learning: config.json and ae.pt; openmoss: "
         "config.json "
         "and sae_weights.safetensors; openai: autoencoder.pt; gemma_npz: params.npz");
  PlainDictionary plain = format->read(path);
  check_finite(plain, fmt::format("cannot use '{}'", path));
  return absorbed(std::move(plain));
}

SavedDictionary load_foreign(const std::string& path, const Format* format) {
  return saved_of(load_plain(path, format), path);
}

}  // namespace megadict
