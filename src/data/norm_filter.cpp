#include "data/norm_filter.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "data/row_reader.h"
#include "data/rows.h"

namespace megadict {

NormFilter filter_by_norm(const std::vector<float>& norms, double max_multiple) {
  if (!(max_multiple >= 1))
    fail(ExitCode::usage, fmt::format("data.max_norm_multiple is {}", max_multiple),
         "1 or more, 0 = off");
  NormFilter filter;
  std::vector<float> ranked = norms;
  const auto middle = ranked.begin() + (static_cast<int64_t>(ranked.size()) - 1) / 2;
  std::nth_element(ranked.begin(), middle, ranked.end());
  filter.median = *middle;
  const double limit = filter.median * max_multiple;
  for (size_t i = 0; i < norms.size(); ++i)
    if (norms[i] <= limit) filter.survivors.push_back(static_cast<int64_t>(i));
  filter.dropped = static_cast<int64_t>(norms.size() - filter.survivors.size());
  if (filter.dropped == 0) filter.survivors.clear();
  return filter;
}

NormFilter filter_by_norm(const ShardIndex& index, double max_multiple) {
  if (max_multiple == 0) return {};
  return filter_by_norm(row_norms(index, {0, index.rows()}), max_multiple);
}

std::string fingerprint_of(const ShardIndex& index, const std::vector<int64_t>& survivors) {
  const std::string all = index.fingerprint();
  if (survivors.empty()) return all;
  const uint64_t hash =
      hash_bytes(survivors.data(), survivors.size() * sizeof(int64_t), hash_text(all));
  return fmt::format("{:016x}", hash);
}

}  // namespace megadict
