#include "lab/code_rules.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"

namespace megadict {

namespace {

// Every (sample, latent) in the order in which it lies: visit(place, latent).
template <class T, class Visit>
void for_each_code(const Tiles<T>& tiles, Visit visit) {
  size_t place = 0;
  for (int64_t t = 0; t < tiles.tiles(); ++t)
    for (int64_t j = 0; j < tiles.features(); ++j)
      for (int64_t lane = 0; lane < kLane; ++lane) visit(place++, static_cast<size_t>(j));
}

// ---- relu (B1, B3)

template <class T>
void encode_relu(const CodeArgs<T>& a) {
  const auto pre = a.pass.pre.values();
  const auto codes = a.pass.codes.values();
  for (size_t i = 0; i < pre.size(); ++i) codes[i] = pre[i] > 0 ? pre[i] : T{0};
}

template <class T>
void backward_positive(const CodeArgs<T>& a) {
  const auto codes = a.pass.codes.values();
  const auto d_codes = a.pass.d_codes.values();
  const auto d_pre = a.pass.d_pre.values();
  for (size_t i = 0; i < codes.size(); ++i) d_pre[i] += codes[i] > 0 ? d_codes[i] : T{0};
}

// lambda sum |z| / count, of codes that are not negative.
template <class T>
double penalise_codes(const CodeArgs<T>& a, double count) {
  const T slope = static_cast<T>(a.settings.lambda / count);
  const auto codes = a.pass.codes.values();
  const auto d_codes = a.pass.d_codes.values();
  double sum = 0;
  for (size_t i = 0; i < codes.size(); ++i) {
    sum += codes[i];
    d_codes[i] += codes[i] > 0 ? slope : T{0};
  }
  return a.settings.lambda * sum / count;
}

template <class T>
double mean_of_codes(const CodeArgs<T>& a) {
  return penalise_codes(a, static_cast<double>(a.pass.codes.values().size()));
}

template <class T>
double mean_l1(const CodeArgs<T>& a) {
  return penalise_codes(a, static_cast<double>(a.x.samples()));
}

// ---- topk (B6): ties go to the lower latent

template <class T>
void encode_topk(const CodeArgs<T>& a) {
  const int64_t latents = a.pass.pre.features();
  const auto k = static_cast<size_t>(std::min(a.settings.k, latents));
  std::vector<std::pair<T, int64_t>> best(static_cast<size_t>(latents));
  std::fill(a.pass.codes.values().begin(), a.pass.codes.values().end(), T{0});
  for (int64_t t = 0; t < a.pass.pre.tiles(); ++t) {
    const T* pre = a.pass.pre.tile(t);
    T* codes = a.pass.codes.tile(t);
    for (int64_t lane = 0; lane < kLane; ++lane) {
      for (int64_t j = 0; j < latents; ++j)
        best[static_cast<size_t>(j)] = {-pre[j * kLane + lane], j};
      std::nth_element(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(k) - 1, best.end());
      for (size_t i = 0; i < k; ++i) {
        const auto [negative, j] = best[i];
        if (negative < 0) codes[j * kLane + lane] = -negative;
      }
    }
  }
}

// ---- jumprelu (B8): learnt[0] = t, theta = e^t

constexpr double kBandwidth = 0.001;

// Whether (u - theta) / bandwidth lies within the kernel's half width.
template <class T>
bool is_near(T u, T theta) {
  return std::abs(u - theta) < static_cast<T>(kBandwidth / 2);
}

template <class T>
std::vector<T> exponentials(const Learnt<T>& logs) {
  std::vector<T> values(logs.value.size());
  std::transform(logs.value.begin(), logs.value.end(), values.begin(),
                 [](T log) { return std::exp(log); });
  return values;
}

template <class T>
void encode_jumprelu(const CodeArgs<T>& a) {
  const std::vector<T> theta = exponentials(a.learnt[0]);
  const auto pre = a.pass.pre.values();
  const auto codes = a.pass.codes.values();
  for_each_code(a.pass.pre,
                [&](size_t i, size_t j) { codes[i] = pre[i] > theta[j] ? pre[i] : T{0}; });
}

template <class T>
double count_active(const CodeArgs<T>& a) {
  const std::vector<T> theta = exponentials(a.learnt[0]);
  const auto pre = a.pass.pre.values();
  const double per_sample = a.settings.lambda / static_cast<double>(a.x.samples());
  const T slope = static_cast<T>(per_sample / kBandwidth);
  std::vector<T>& gradient = a.learnt[0].gradient;
  double active = 0;
  for_each_code(a.pass.pre, [&](size_t i, size_t j) {
    active += pre[i] > theta[j] ? 1 : 0;
    if (is_near(pre[i], theta[j])) gradient[j] -= theta[j] * slope;
  });
  return per_sample * active;
}

template <class T>
void backward_jumprelu(const CodeArgs<T>& a) {
  const std::vector<T> theta = exponentials(a.learnt[0]);
  const auto pre = a.pass.pre.values();
  const auto d_codes = a.pass.d_codes.values();
  const auto d_pre = a.pass.d_pre.values();
  std::vector<T>& gradient = a.learnt[0].gradient;
  for_each_code(a.pass.pre, [&](size_t i, size_t j) {
    if (pre[i] > theta[j]) d_pre[i] += d_codes[i];
    if (is_near(pre[i], theta[j]))
      gradient[j] -= theta[j] * d_codes[i] * theta[j] / static_cast<T>(kBandwidth);
  });
}

// ---- gated (B7): learnt = r, b_m, b_g

template <class T>
void encode_gated(const CodeArgs<T>& a) {
  const std::vector<T> scale = exponentials(a.learnt[0]);
  const auto pre = a.pass.pre.values();
  const auto codes = a.pass.codes.values();
  for_each_code(a.pass.pre, [&](size_t i, size_t j) {
    const T magnitude = scale[j] * pre[i] + a.learnt[1].value[j];
    const bool open = pre[i] + a.learnt[2].value[j] > 0;
    codes[i] = open && magnitude > 0 ? magnitude : T{0};
  });
}

// The gates' L1 and their own reconstruction, for which decoder and b_dec are constants.
template <class T>
double penalise_gates(const CodeArgs<T>& a) {
  const auto samples = static_cast<double>(a.x.samples());
  Tiles<T> gates(a.x.samples(), a.pass.pre.features()), d_gates = gates;
  const auto pre = a.pass.pre.values();
  double l1 = 0;
  for_each_code(gates, [&](size_t i, size_t j) {
    gates.values()[i] = std::max(T{0}, pre[i] + a.learnt[2].value[j]);
    l1 += gates.values()[i];
  });
  Tiles<T> error(a.x.samples(), a.x.features());
  multiply(a.decoder, a.b_dec.present() ? a.b_dec.value.data() : nullptr, gates, error);
  double squares = 0;
  for (size_t i = 0; i < error.values().size(); ++i) {
    const T e = error.values()[i] - a.x.values()[i];
    squares += static_cast<double>(e) * e;
    error.values()[i] = static_cast<T>(2 / samples) * e;
  }
  multiply_transposed(a.decoder, error, d_gates);
  const T slope = static_cast<T>(a.settings.lambda / samples);
  for_each_code(gates, [&](size_t i, size_t j) {
    if (!(gates.values()[i] > 0)) return;
    const T d = d_gates.values()[i] + slope;
    a.pass.d_pre.values()[i] += d;
    a.learnt[2].gradient[j] += d;
  });
  return (a.settings.lambda * l1 + squares) / samples;
}

template <class T>
void backward_gated(const CodeArgs<T>& a) {
  const std::vector<T> scale = exponentials(a.learnt[0]);
  const auto pre = a.pass.pre.values();
  const auto codes = a.pass.codes.values();
  const auto d_codes = a.pass.d_codes.values();
  for_each_code(a.pass.pre, [&](size_t i, size_t j) {
    if (!(codes[i] > 0)) return;
    a.pass.d_pre.values()[i] += d_codes[i] * scale[j];
    a.learnt[0].gradient[j] += d_codes[i] * scale[j] * pre[i];
    a.learnt[1].gradient[j] += d_codes[i];
  });
}

// ---- prolu (B9): learnt[0] = b

template <class T>
void encode_prolu(const CodeArgs<T>& a) {
  const auto pre = a.pass.pre.values();
  const auto codes = a.pass.codes.values();
  for_each_code(a.pass.pre, [&](size_t i, size_t j) {
    codes[i] = pre[i] > 0 && pre[i] + a.learnt[0].value[j] > 0 ? pre[i] : T{0};
  });
}

template <class T>
void backward_prolu(const CodeArgs<T>& a) {
  const auto codes = a.pass.codes.values();
  const auto d_codes = a.pass.d_codes.values();
  const bool ste = a.settings.prolu_ste;
  for_each_code(a.pass.pre, [&](size_t i, size_t j) {
    if (!(codes[i] > 0)) return;
    a.pass.d_pre.values()[i] += ste ? (1 + codes[i]) * d_codes[i] : d_codes[i];
    a.learnt[0].gradient[j] += ste ? codes[i] * d_codes[i] : d_codes[i];
  });
}

template <class T>
const std::array<CodeRule<T>, 5>& rules() {
  static const std::array<CodeRule<T>, 5> table = {{
      {.name = "relu",
       .item = "B1",
       .encode = encode_relu<T>,
       .penalty = mean_of_codes<T>,
       .backward = backward_positive<T>},
      {.name = "topk",
       .item = "B6",
       .centred = true,
       .encoder_bias = true,
       .output_bias = true,
       .from_decoder = true,
       .encode = encode_topk<T>,
       .backward = backward_positive<T>},
      {.name = "jumprelu",
       .item = "B8",
       .learnt = {"t"},
       .encoder_bias = true,
       .output_bias = true,
       .sample_sums = true,
       .from_decoder = true,
       .projects = true,
       .encode = encode_jumprelu<T>,
       .penalty = count_active<T>,
       .backward = backward_jumprelu<T>},
      {.name = "gated",
       .item = "B7",
       .learnt = {"r", "b_m", "b_g"},
       .centred = true,
       .output_bias = true,
       .sample_sums = true,
       .from_decoder = true,
       .projects = true,
       .encode = encode_gated<T>,
       .penalty = penalise_gates<T>,
       .backward = backward_gated<T>},
      {.name = "prolu",
       .item = "B9",
       .learnt = {"b"},
       .centred = true,
       .output_bias = true,
       .sample_sums = true,
       .from_decoder = true,
       .projects = true,
       .encode = encode_prolu<T>,
       .penalty = mean_l1<T>,
       .backward = backward_prolu<T>},
  }};
  return table;
}

}  // namespace

template <class T>
const CodeRule<T>& code_rule(std::string_view name) {
  for (const CodeRule<T>& rule : rules<T>())
    if (rule.name == name) return rule;
  fail(ExitCode::usage, fmt::format("unknown activation '{}'", name),
       fmt::format("one of {}", fmt::join(code_rule_names(), ", ")));
}

std::vector<std::string_view> code_rule_names() {
  std::vector<std::string_view> names;
  for (const CodeRule<float>& rule : rules<float>()) names.push_back(rule.name);
  return names;
}

template const CodeRule<float>& code_rule(std::string_view);
template const CodeRule<double>& code_rule(std::string_view);

}  // namespace megadict
