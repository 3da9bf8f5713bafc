#include "data/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/progress.h"
#include "data/row_reader.h"
#include "data/rows.h"
#include "data/shard_file.h"
#include "io/file.h"

namespace megadict {

namespace {

using Row = std::vector<std::string>;

// Columns padded to their widest cell.
std::vector<std::string> aligned(const std::vector<Row>& rows) {
  std::vector<size_t> widths;
  for (const Row& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t c = 0; c + 1 < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  std::vector<std::string> lines;
  for (const Row& row : rows) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c)
      line += c + 1 < row.size() ? fmt::format("{:<{}}  ", row[c], widths[c]) : row[c];
    lines.push_back(line);
  }
  return lines;
}

std::string columns_of(const ShardFile& file) {
  std::vector<std::string> names;
  for (const char* name : {"tokens", "position", "document", "norm"})
    if (file.has(name)) names.push_back(name);
  return names.empty() ? "-" : fmt::format("{}", fmt::join(names, ","));
}

std::string or_dash(const std::string& text) {
  return text.empty() ? "-" : text;
}

Row table_row(const std::string& path) {
  const std::string mib = fmt::format("{:.1f}", static_cast<double>(file_size(path)) / (1 << 20));
  try {
    const ShardFile file = ShardFile::open(path);
    const DatasetFacts& facts = file.facts();
    return {file_name(path),
            std::to_string(file.rows()),
            std::to_string(facts.width),
            std::string(name_of(facts.dtype)),
            std::to_string(file.chunk_rows()),
            mib,
            or_dash(facts.model),
            or_dash(facts.hook),
            facts.layer < 0 ? "-" : std::to_string(facts.layer),
            columns_of(file)};
  } catch (const Error& error) {
    return {file_name(path), "-", "-", "-", "-", mib, "-", "-", "-", error.what()};
  }
}

void add_norms(const ShardIndex& index, std::vector<std::string>& lines) {
  for (const ShardInfo& shard : index.shards())
    if (!shard.has_norm) {
      lines.push_back("norm         not stored (one scan of the rows where it is needed)");
      return;
    }
  std::vector<float> norms = row_norms(index, {0, index.rows()});
  std::sort(norms.begin(), norms.end());
  const float median = norms[(norms.size() - 1) / 2];
  const double mean =
      std::accumulate(norms.begin(), norms.end(), 0.0) / static_cast<double>(norms.size());
  const auto above = norms.end() - std::upper_bound(norms.begin(), norms.end(), 10 * median);
  lines.push_back(fmt::format(
      "norm         mean {:.4g}, median {:.4g}, largest {:.4g}, {:.4g} % of rows above 10 medians",
      mean, median, norms.back(),
      100.0 * static_cast<double>(above) / static_cast<double>(norms.size())));
}

void add_totals(const std::string& path, std::vector<std::string>& lines) {
  try {
    const ShardIndex index = ShardIndex::open(path);
    lines.push_back(fmt::format("rows         {} in {} chunks, shards: {}", index.rows(),
                                index.chunks().size(), index.shards().size()));
    lines.push_back(fmt::format("fingerprint  {}", index.fingerprint()));
    add_norms(index, lines);
  } catch (const Error& error) {
    lines.push_back(fmt::format("unusable     {}", error.what()));
  }
  const std::string eval = path + "/eval";
  if (!folder_exists(eval)) return;
  try {
    const ShardIndex index = ShardIndex::open(eval);
    lines.push_back(
        fmt::format("eval         {} rows, shards: {}", index.rows(), index.shards().size()));
  } catch (const Error& error) {
    lines.push_back(fmt::format("eval         {}", error.what()));
  }
}

// Collects problems of one shard.
class Verifier {
 public:
  Verifier(const ShardFile& file, VerifyReport& report) : file_(file), report_(report) {}

  void run(Progress& shown) {
    if (file_.has("norm")) {
      norms_.resize(static_cast<size_t>(file_.rows()));
      file_.read_column("norm", {0, file_.rows()}, view_of(norms_.data(), file_.rows()));
    }
    for (const char* column : {"tokens", "position", "document"}) {
      std::vector<uint32_t> values(static_cast<size_t>(file_.rows()));
      if (file_.has(column))
        file_.read_column(column, {0, file_.rows()}, view_of(values.data(), file_.rows()));
    }
    std::vector<std::byte> rows(file_.stored_bytes());
    for (int64_t i = 0; i < file_.chunks(); ++i) {
      try {
        file_.read_chunk(i, rows.data());
        check_rows(i, rows.data());
      } catch (const Error& error) {
        add(error.what());
      }
      ++report_.chunks;
      report_.bytes += static_cast<int64_t>(rows.size());
      shown.at(report_.bytes >> 20);
    }
    report_.rows += file_.rows();
  }

 private:
  void check_rows(int64_t chunk, const std::byte* rows) {
    const Range range = file_.chunk(chunk);
    for (int64_t row = range.begin; row < range.end; ++row, rows += file_.row_bytes()) {
      const DType dtype = file_.facts().dtype;
      const int64_t width = file_.facts().width;
      if (first_non_finite(rows, dtype, width) >= 0) {
        problem(fmt::format("chunk {}: row {} holds a value that is not finite", chunk, row));
      } else if (!norms_.empty()) {
        const float norm = row_norm(rows, dtype, width), stated = norms_[static_cast<size_t>(row)];
        if (!(std::fabs(norm - stated) <= 1e-3f * norm))
          problem(fmt::format("chunk {}: the norm of row {} is {}, stored is {}", chunk, row, norm,
                              stated));
      }
    }
  }

  void problem(const std::string& what) { add(fmt::format("'{}': {}", file_.path(), what)); }
  void add(const std::string& line) {
    if (report_.problems.size() < 100) report_.problems.push_back(line);
  }

  const ShardFile& file_;
  VerifyReport& report_;
  std::vector<float> norms_;
};

}  // namespace

std::vector<std::string> data_info(const std::string& path_or_glob) {
  std::vector<Row> rows = {
      {"shard", "rows", "d", "dtype", "chunk rows", "MiB", "model", "hook", "layer", "columns"}};
  for (const std::string& path : find_shards(path_or_glob)) rows.push_back(table_row(path));
  std::vector<std::string> lines = aligned(rows);
  add_totals(path_or_glob, lines);
  return lines;
}

VerifyReport verify_data_set(const std::string& path_or_glob) {
  std::vector<std::string> paths = find_shards(path_or_glob);
  if (const std::string eval = path_or_glob + "/eval"; folder_exists(eval)) {
    const std::vector<std::string> held_out = find_shards(eval);
    paths.insert(paths.end(), held_out.begin(), held_out.end());
  }
  VerifyReport report;
  int64_t bytes = 0;
  for (const std::string& path : paths) bytes += file_size(path);
  Progress shown("verify", bytes >> 20, "MiB");
  for (const std::string& path : paths) {
    ++report.shards;
    try {
      const ShardFile file = ShardFile::open(path);
      Verifier(file, report).run(shown);
    } catch (const Error& error) {
      if (report.problems.size() < 100) report.problems.push_back(error.what());
    }
  }
  return report;
}

}  // namespace megadict
