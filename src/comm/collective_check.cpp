#include "comm/collective_check.h"

#include <fmt/format.h>

#include <algorithm>

namespace megadict {

std::string describe(const CallRecord& record) {
  std::string text = fmt::format("{} '{}'", record.kind, record.name);
  const std::string_view type = name_of(static_cast<DType>(record.dtype));
  const std::string op = record.op[0] == '\0' ? "" : fmt::format("{} of ", record.op);
  const std::string root = record.root < 0 ? "" : fmt::format(" from {}", record.root);
  if (record.count < 0) return text;
  return text + fmt::format(" ({}{} {}{})", op, record.count, type, root);
}

std::string difference(const std::vector<CallRecord>& by_rank) {
  const auto votes = [&](const CallRecord& record) {
    return std::count(by_rank.begin(), by_rank.end(), record);
  };
  const CallRecord* usual = by_rank.data();  // of equals the lowest rank's
  for (const CallRecord& record : by_rank)
    if (votes(record) > votes(*usual)) usual = &record;
  std::string odd;
  int named = 0, more = 0;
  for (size_t rank = 0; rank < by_rank.size(); ++rank) {
    if (by_rank[rank] == *usual) continue;
    if (++named > 4) {
      ++more;
      continue;
    }
    odd +=
        fmt::format("{}rank {} calls {}", odd.empty() ? "" : ", ", rank, describe(by_rank[rank]));
  }
  if (odd.empty()) return "";
  if (more > 0) odd += fmt::format(" and {} more differ", more);
  const auto reference = usual - by_rank.data();
  return fmt::format("{}; rank {} calls {}", odd, reference, describe(*usual));
}

}  // namespace megadict
