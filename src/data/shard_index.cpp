#include "data/shard_index.h"

#include <fmt/format.h>

#include "base/error.h"
#include "data/rows.h"
#include "data/shard_file.h"
#include "io/file.h"

namespace megadict {

namespace {

// Folders inside `folder` that hold shards themselves: one data set per site and layer.
std::string data_sets_inside(const std::string& folder) {
  std::string names;
  for (const std::string& path : glob_files(folder + "/*/*.h5")) {
    const std::string name = file_name(parent_folder(path));
    if (name == "eval" || names.ends_with(name)) continue;
    names += (names.empty() ? "" : ", ") + name;
  }
  return names;
}

// Empty where both shards can belong to one data set, otherwise what differs ("512 wide").
std::string difference(const DatasetFacts& a, const DatasetFacts& b) {
  const auto differ = [](const char* what, const auto& first, const auto& second) {
    return fmt::format("{} '{}' against '{}'", what, first, second);
  };
  if (a.width != b.width) return fmt::format("rows {} wide against {}", a.width, b.width);
  if (a.dtype != b.dtype) return differ("dtype", name_of(a.dtype), name_of(b.dtype));
  if (a.model != b.model) return differ("model", a.model, b.model);
  if (a.hook != b.hook) return differ("hook", a.hook, b.hook);
  if (a.layer != b.layer) return differ("layer", a.layer, b.layer);
  if (a.tokenizer != b.tokenizer) return differ("tokenizer", a.tokenizer, b.tokenizer);
  return "";
}

}  // namespace

std::vector<std::string> find_shards(const std::string& path) {
  if (path.empty())
    fail(ExitCode::usage, "data.path is empty", "a folder or a glob of *.h5 shards");
  if (folder_exists(path)) {
    std::vector<std::string> found = list_files(path, ".h5");
    if (!found.empty()) return found;
    const std::string inside = data_sets_inside(path);
    fail(ExitCode::bad_data, fmt::format("no *.h5 shards in the folder '{}'", path),
         inside.empty() ? fmt::format("megadict data import --from FILE --out {}", path)
                        : fmt::format("it holds the data sets {}", inside));
  }
  std::vector<std::string> found = glob_files(path);
  if (found.empty())
    fail(ExitCode::bad_data,
         fmt::format("no folder '{}', and no file of that name or pattern", path));
  return found;
}

ShardIndex ShardIndex::open(const std::string& path_or_glob) {
  ShardIndex index;
  int64_t next = 0;
  for (const std::string& path : find_shards(path_or_glob)) {
    const ShardFile file = ShardFile::open(path);
    if (index.shards_.empty()) {
      index.facts_ = file.facts();
    } else if (const std::string what = difference(index.facts_, file.facts()); !what.empty()) {
      fail(ExitCode::bad_data,
           fmt::format("'{}' and '{}' do not belong together: {}", index.shards_[0].path, path,
                       what),
           fmt::format("megadict data info {}", path_or_glob));
    }
    const auto number = static_cast<int32_t>(index.shards_.size());
    index.shards_.push_back({path,
                             {next, next + file.rows()},
                             file.chunk_rows(),
                             checksum_of(file),
                             file.has("tokens"),
                             file.has("position"),
                             file.has("document"),
                             file.has("norm")});
    for (int64_t i = 0; i < file.chunks(); ++i) {
      const Range rows = file.chunk(i);
      index.chunks_.push_back({number, {next + rows.begin, next + rows.end}});
    }
    next += file.rows();
  }
  return index;
}

void ShardIndex::move_shard(int32_t shard, const std::string& path) {
  shards_[static_cast<size_t>(shard)].path = path;
}

int64_t ShardIndex::rows() const {
  return shards_.empty() ? 0 : shards_.back().rows.end;
}

std::string ShardIndex::fingerprint() const {
  std::string text = fmt::format("{} {}", name_of(facts_.dtype), facts_.width);
  for (const ShardInfo& shard : shards_)
    text +=
        fmt::format("\n{} {} {:016x}", file_name(shard.path), shard.rows.size(), shard.checksum);
  return fmt::format("{:016x}", hash_text(text));
}

}  // namespace megadict
