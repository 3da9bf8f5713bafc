#include "app/control_group.h"

#include <algorithm>
#include <fstream>

namespace megadict {

namespace {

// The two layouts: what a line of the membership file has before the group's path, where its tree
// is, and what its files are called.
struct Layout {
  const char *prefix, *tree, *limit, *used, *inactive, *active;
};
constexpr Layout kLayouts[] = {
    {"0::", "", "memory.max", "memory.current", "inactive_file", "active_file"},
    {":memory:", "/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
     "total_active_file"},
};

int64_t number_in(const std::string& path) {
  std::ifstream in(path);
  int64_t value = 0;
  return in >> value ? value : kUnknownBytes;
}

// Bytes of files that the group keeps and would give up.
int64_t reclaimable(const Layout& layout, const std::string& group) {
  std::ifstream in(group + "/memory.stat");
  int64_t sum = 0, bytes = 0;
  for (std::string name; in >> name >> bytes;)
    if (name == layout.inactive || name == layout.active) sum += bytes;
  return sum;
}

int64_t tighter(int64_t a, int64_t b) {
  return a < 0 || b < 0 ? std::max(a, b) : std::min(a, b);
}

// From the group at `path` up to the root of its tree. Inside a container the path may be the
// host's: what is not there says nothing.
int64_t available_above(const Layout& layout, const std::string& tree, std::string path) {
  for (int64_t least = kUnknownBytes;;) {
    const std::string group = tree + (path == "/" ? "" : path);
    const int64_t limit = number_in(group + "/" + layout.limit),
                  used = number_in(group + "/" + layout.used);
    if (limit >= 0 && used >= 0)
      least = tighter(least, std::max<int64_t>(limit - used + reclaimable(layout, group), 0));
    if (path.size() <= 1) return least;
    path.resize(std::max<size_t>(path.rfind('/'), 1));
  }
}

}  // namespace

int64_t available_in_group(const std::string& membership, const std::string& root) {
  int64_t least = kUnknownBytes;
  std::ifstream in(membership);
  for (std::string line; std::getline(in, line);)
    for (const Layout& layout : kLayouts) {
      const size_t at = line.find(layout.prefix);
      if (at == std::string::npos || (layout.tree[0] == '\0' && at != 0)) continue;
      const std::string path = line.substr(line.find('/', at));
      least = tighter(least, available_above(layout, root + layout.tree, path));
    }
  return least;
}

}  // namespace megadict
