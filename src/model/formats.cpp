#include "model/formats.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <stdlib.h>

#include <cmath>
#include <filesystem>

#include "base/error.h"
#include "base/log.h"
#include "io/file.h"
#include "io/staged_folder.h"
#include "model/activations.h"
#include "model/foreign_files.h"
#include "model/forward.h"

namespace megadict {
namespace {

constexpr int64_t kBlockRows = 4096;  // of weights held in fp64 at a time

at::Tensor cpu_copy(const at::Tensor& tensor) {
  return tensor.to(at::kCPU, at::kFloat, /*non_blocking=*/false, /*copy=*/true).contiguous();
}

// tensor *= factor in fp64.
void scale_rows(at::Tensor& tensor, double factor) {
  if (factor == 1.0) return;
  for (int64_t from = 0; from < tensor.size(0); from += kBlockRows) {
    at::Tensor block = tensor.narrow(0, from, std::min(kBlockRows, tensor.size(0) - from));
    block.copy_(block.to(at::kDouble) * factor);
  }
}

std::string hint_for(const SavedDictionary& saved) {
  for (const Format& format : all_formats())
    if (format.problem(saved).empty()) return fmt::format("--format {} can hold it", format.name);
  return "keep the native checkpoint; no format here holds it";
}

struct NamedTensor {
  const char* name;
  at::Tensor Dictionary::*member;
};
constexpr NamedTensor kTensors[] = {{"W_enc", &Dictionary::w_enc_ld},
                                    {"W_dec", &Dictionary::w_dec_ld},
                                    {"b_enc", &Dictionary::b_enc_l},
                                    {"b_dec", &Dictionary::b_dec_d}};

void check_finite(const Dictionary& dictionary) {
  for (const auto& [name, member] : kTensors)
    if (!at::isfinite(dictionary.*member).all().item<bool>())
      fail_agreed(ExitCode::bad_data,
                  fmt::format("cannot export: {} holds values that are not finite", name));
}

// What a reader of the folder gets must be what was meant, bit for bit.
void check_written(const SavedDictionary& meant, const Format& format, const std::string& folder) {
  const SavedDictionary got = format.read(folder);
  const auto differ = [&](const std::string& what) {
    fail(ExitCode::error,
         fmt::format("export as {}: reading the files back gives another {}", format.name, what));
  };
  const Dictionary &a = meant.dictionary, &b = got.dictionary;
  if (a.n != b.n || a.d != b.d) differ("shape");
  if (a.config.activation != b.config.activation) differ("activation");
  if (activation_named(a.config.activation).has_k && selectable_k(meant) != b.config.k) differ("k");
  if (a.threshold != b.threshold) differ("threshold");
  if (got.normalization.scale != 1.0 || !got.normalization.mean.empty()) differ("normalisation");
  for (const auto& [name, member] : kTensors)
    if (!at::equal(a.*member, b.*member)) differ(name);
}

}  // namespace

ExportScale export_scale_named(const std::string& name) {
  if (name == "unit") return ExportScale::unit;
  if (name == "trained") return ExportScale::trained;
  fail_agreed(ExitCode::usage, fmt::format("there is no export scale '{}'", name),
              "'unit' or 'trained'");
}

std::string_view name_of(ExportScale scale) {
  return scale == ExportScale::unit ? "unit" : "trained";
}

SavedDictionary folded(SavedDictionary out, ExportScale scale) {
  Dictionary& dictionary = out.dictionary;
  for (const auto& [name, member] : kTensors) dictionary.*member = cpu_copy(dictionary.*member);
  dictionary.config.decoder = "linear";
  const double s = out.normalization.scale;
  if (scale == ExportScale::unit) {
    scale_rows(dictionary.b_enc_l, 1 / s);
  } else {
    scale_rows(dictionary.w_enc_ld, s);
    scale_rows(dictionary.w_dec_ld, 1 / s);
  }
  at::Tensor b_dec = dictionary.b_dec_d.to(at::kDouble) / s;
  for (size_t i = 0; i < out.normalization.mean.size(); ++i)
    b_dec.mutable_data_ptr<double>()[i] += out.normalization.mean[i];
  dictionary.b_dec_d = b_dec.to(at::kFloat);
  // Of 32 bits, as it is compared and written.
  if (scale == ExportScale::unit) dictionary.threshold /= s;
  dictionary.threshold = static_cast<float>(dictionary.threshold);
  out.normalization = {};
  return out;
}

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

std::span<const Format> all_formats() {
  static const Format formats[] = {kSaelensFormat, kSparsifyFormat};
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

void export_dictionary(SavedDictionary saved, const Format& format, ExportScale scale,
                       const std::string& folder) {
  if (saved.dictionary.latents.size() != saved.dictionary.n)
    fail(ExitCode::error, "export: one process must hold all latents");
  const std::string problem = format.problem(saved);
  if (!problem.empty()) fail_agreed(ExitCode::usage, problem, hint_for(saved));
  StagedFolder making(folder);
  const ExportNote note{scale, saved.normalization.scale};
  progress("export: folding");
  const SavedDictionary plain = folded(std::move(saved), scale);
  check_finite(plain.dictionary);
  progress("export: writing");
  format.write(plain, note, making.path());
  progress("export: reading back what was written");
  check_written(plain, format, making.path());
  making.commit();
}

const Format* foreign_format(const std::string& folder) {
  for (const Format& format : all_formats())
    if (format.recognises(folder)) return &format;
  return nullptr;
}

SavedDictionary load_foreign(const std::string& folder) {
  const Format* format = foreign_format(folder);
  if (format == nullptr)
    fail(ExitCode::bad_data, fmt::format("'{}' is no dictionary of a known format", folder),
         "saelens: cfg.json and sae_weights.safetensors; sparsify: cfg.json and sae.safetensors "
         "(in a hookpoint's folder)");
  SavedDictionary saved = format->read(folder);
  const Dictionary& dictionary = saved.dictionary;
  for (const auto& [name, member] : kTensors)
    if (!at::isfinite(dictionary.*member).all().item<bool>())
      fail(ExitCode::bad_data,
           fmt::format("cannot use '{}': {} holds values that are not finite", folder, name));
  return saved;
}

}  // namespace megadict
