#include "model/matryoshka.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string_view>

#include "base/error.h"
#include "model/code_entries.h"

namespace megadict {

namespace {

[[noreturn]] void refuse(const char* name, const std::string& text, const std::string& why) {
  fail_agreed(ExitCode::usage, fmt::format("{} = '{}': {}", name, text, why));
}

std::vector<std::string_view> items_of(std::string_view text) {
  std::vector<std::string_view> items;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    std::string_view item = text.substr(begin, end - begin);
    while (item.starts_with(' ')) item.remove_prefix(1);
    while (item.ends_with(' ')) item.remove_suffix(1);
    items.push_back(item);
    begin = end + 1;
  }
  return items;
}

double number(const char* name, const std::string& text, std::string_view item) {
  double value = 0;
  const auto read = std::from_chars(item.data(), item.data() + item.size(), value);
  if (read.ec != std::errc() || read.ptr != item.data() + item.size() || !std::isfinite(value) ||
      value <= 0)
    refuse(name, text, fmt::format("'{}' is no number above 0", item));
  return value;
}

// Numbers below 1 are shares of the dictionary.
std::vector<int64_t> sizes_of(const std::string& text, int64_t n) {
  constexpr const char* kName = "model.matryoshka";
  std::vector<int64_t> sizes;
  for (const std::string_view item : items_of(text)) {
    const double value = number(kName, text, item);
    const double size = value < 1 ? std::round(value * static_cast<double>(n)) : value;
    if (size != std::floor(size) || size < 1 || size > static_cast<double>(n))
      refuse(kName, text,
             fmt::format("'{}' of {} latents; allowed: 1 to {}, or a share below 1", item, n, n));
    const auto whole = static_cast<int64_t>(size);
    if (!sizes.empty() && whole <= sizes.back())
      refuse(kName, text,
             fmt::format("a prefix of {} latents after one of {}; allowed: ascending", whole,
                         sizes.back()));
    sizes.push_back(whole);
  }
  if (sizes.back() < n) sizes.push_back(n);
  return sizes;
}

Range within(const Level& level, Range shard) {
  const auto local = [&](int64_t latent) {
    return std::clamp(latent, shard.begin, shard.end) - shard.begin;
  };
  return {local(level.latents.begin), local(level.latents.end)};
}

}  // namespace

std::vector<Level> levels_of(const ModelConfig& config, int64_t n) {
  constexpr const char* kWeights = "model.matryoshka_weights";
  constexpr double kLargestWeight = 1e6;
  if (config.matryoshka.empty()) {
    if (!config.matryoshka_weights.empty())
      refuse(kWeights, config.matryoshka_weights,
             "there are no prefixes: model.matryoshka is empty");
    return {{{0, n}, 1}};
  }
  const std::vector<int64_t> sizes = sizes_of(config.matryoshka, n);
  std::vector<double> weights(sizes.size(), 1 / static_cast<double>(sizes.size()));
  if (!config.matryoshka_weights.empty()) {
    weights.clear();
    for (const std::string_view item : items_of(config.matryoshka_weights))
      weights.push_back(number(kWeights, config.matryoshka_weights, item));
    if (*std::max_element(weights.begin(), weights.end()) > kLargestWeight)
      refuse(kWeights, config.matryoshka_weights,
             fmt::format("allowed: above 0 to {:g}", kLargestWeight));
    if (weights.size() != sizes.size())
      refuse(kWeights, config.matryoshka_weights,
             fmt::format("{} weights for {} prefixes, of which the last is the whole dictionary",
                         weights.size(), sizes.size()));
  }
  std::vector<Level> levels;
  for (size_t p = 0; p < sizes.size(); ++p)
    levels.push_back({{p > 0 ? sizes[p - 1] : 0, sizes[p]}, weights[p]});
  return levels;
}

Codes codes_of_level(const Codes& codes, const Level& level, Range shard) {
  const Range range = within(level, shard);
  if (range.size() == shard.size()) return codes;
  const at::Tensor kept = codes.latent.ge(range.begin).logical_and(codes.latent.lt(range.end));
  return entries_where(codes, kept);
}

// Lists of other latents end where they begin; the entries stay where they are.
LatentCodes codes_of_level(const LatentCodes& codes, const Level& level, Range shard) {
  const Range range = within(level, shard);
  if (range.size() == shard.size()) return codes;
  LatentCodes out = codes;
  out.latent_start = codes.latent_start.clamp(codes.latent_start[range.begin].item<int64_t>(),
                                              codes.latent_start[range.end].item<int64_t>());
  return out;
}

}  // namespace megadict
