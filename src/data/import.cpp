#include "data/import.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "base/error.h"
#include "base/log.h"
#include "base/philox.h"
#include "base/progress.h"
#include "data/inspect.h"
#include "data/rows.h"
#include "data/shard_set.h"
#include "data/synth.h"
#include "io/file.h"
#include "io/staged_folder.h"

namespace megadict {

namespace {

constexpr int64_t kBlockBytes = 16 << 20;

std::vector<std::string> find_files(const std::string& from) {
  if (from.empty()) fail(ExitCode::usage, "nothing to import", "--from FILE, FOLDER or PATTERN");
  if (file_exists(from)) return {from};
  std::vector<std::string> found;
  if (folder_exists(from)) {
    for (const char* ending : {".npy", ".safetensors", ".h5", ".hdf5"})
      for (const std::string& path : list_files(from, ending)) found.push_back(path);
  } else {
    found = glob_files(from);
  }
  if (found.empty())
    fail(ExitCode::bad_data, fmt::format("nothing to import: no file in or like '{}'", from),
         ".npy, .safetensors, .h5 or .hdf5");
  return found;
}

using Sources = std::vector<ActivationSource>;

Sources open_sources(const ImportOptions& options) {
  Sources sources;
  for (const std::string& path : find_files(options.from)) {
    sources.push_back(open_source(path, options.source));
    const ActivationSource &first = sources.front(), &last = sources.back();
    if (first.width != last.width || first.dtype != last.dtype)
      fail(ExitCode::bad_data,
           fmt::format("'{}' and '{}' do not belong together: {} [.., {}] against {} [.., {}]",
                       first.path, last.path, name_of(first.dtype), first.width,
                       name_of(last.dtype), last.width));
  }
  return sources;
}

// Everything about the rows of one file besides the rows.
struct Columns {
  std::vector<uint32_t> tokens, position, document;
  std::vector<uint8_t> mask;  // empty = all rows count

  explicit Columns(const ActivationSource& source)
      : tokens(source.column("tokens")),
        position(source.column("position")),
        document(source.column("document")),
        mask(source.mask()) {}
  bool kept(int64_t row) const { return mask.empty() || mask[static_cast<size_t>(row)] != 0; }
};

// Which documents are held out: whole ones, in an order drawn by seed, until they have the rows
// asked for; at least one stays for training.
std::set<uint32_t> choose_documents(const Sources& sources, const ImportOptions& options) {
  std::map<uint32_t, int64_t> rows;
  int64_t all = 0;
  for (const auto& source : sources) {
    const Columns columns(source);
    for (size_t i = 0; i < columns.document.size(); ++i) {
      if (!columns.kept(static_cast<int64_t>(i))) continue;
      ++rows[columns.document[i]];
      ++all;
    }
  }
  if (rows.size() < 2)
    fail(ExitCode::usage, fmt::format("{} document(s) cannot be split for evaluation", rows.size()),
         "--eval_fraction 0");
  const Rng rng{options.seed, Purpose::split, 0};
  std::vector<std::pair<uint64_t, uint32_t>> order;
  for (const auto& [document, count] : rows) order.emplace_back(rng.bits64(document), document);
  std::sort(order.begin(), order.end());
  const int64_t wanted = eval_rows_of(all, options.eval_fraction);
  std::set<uint32_t> chosen;
  int64_t held = 0;
  for (const auto& [key, document] : order) {
    if (held >= wanted || chosen.size() + 1 == rows.size()) break;
    chosen.insert(document);
    held += rows[document];
  }
  return chosen;
}

// Running facts of the rows, in double.
struct Facts {
  std::vector<double> sum;
  std::vector<float> norms;
  double squares = 0, norm_sum = 0;

  void add(const float* row, int64_t width) {
    sum.resize(static_cast<size_t>(width));
    double square = 0;
    for (int64_t i = 0; i < width; ++i) {
      const double value = row[i];
      sum[static_cast<size_t>(i)] += value;
      square += value * value;
    }
    squares += square;
    norm_sum += std::sqrt(square);
    norms.push_back(static_cast<float>(std::sqrt(square)));
  }

  void fill(ImportReport& report) {
    const auto count = static_cast<double>(norms.size());
    double mean_square = 0;
    for (double total : sum) mean_square += (total / count) * (total / count);
    const double variance = std::max(0.0, squares / count - mean_square);
    report.mean_norm = norm_sum / count;
    report.gamma = variance > 0 ? std::sqrt(mean_square / variance) : INFINITY;
    const auto middle = norms.begin() + (static_cast<int64_t>(norms.size()) - 1) / 2;
    std::nth_element(norms.begin(), middle, norms.end());
    report.median_norm = *middle;
    const double limit = 10 * report.median_norm;
    report.share_above_10_medians =
        static_cast<double>(
            std::count_if(norms.begin(), norms.end(), [&](float norm) { return norm > limit; })) /
        count;
  }
};

class Importer {
 public:
  Importer(const ImportOptions& options, const Sources& sources, const std::string& folder)
      : options_(options),
        sources_(sources),
        facts_(facts_of(options, sources.front())),
        training_(folder, facts_),
        evaluation_(folder + "/eval", facts_) {
    report_.split_by_document = options.eval_fraction > 0 && every_file_has_documents();
    if (report_.split_by_document) held_out_ = choose_documents(sources, options);
  }

  ImportReport run() {
    int64_t rows = 0, before = 0;
    for (const auto& source : sources_) rows += source.rows;
    Progress shown("import", rows, "rows");
    for (const auto& source : sources_) {
      import(source, before, shown);
      before += source.rows;
    }
    training_.finish();
    evaluation_.finish();
    report_.files = static_cast<int64_t>(sources_.size());
    report_.training_rows = training_.rows();
    report_.eval_rows = evaluation_.rows();
    report_.width = facts_.width;
    report_.dtype = facts_.dtype;
    if (training_.rows() == 0)
      fail(ExitCode::bad_data, fmt::format("'{}' holds no rows for training", options_.from));
    statistics_.fill(report_);
    return report_;
  }

 private:
  static DatasetFacts facts_of(const ImportOptions& options, const ActivationSource& source) {
    const DType dtype = options.store.empty() ? source.dtype : activation_dtype(options.store);
    return {source.width, dtype, options.model, options.hook, options.tokenizer, options.layer};
  }

  bool every_file_has_documents() const {
    return std::all_of(sources_.begin(), sources_.end(),
                       [](const auto& source) { return !source.column("document").empty(); });
  }

  // The first row of the file that is held out when it is not split by document.
  int64_t first_held_out(const ActivationSource& source) const {
    if (options_.eval_fraction == 0) return source.rows;
    if (sources_.size() > 1 && source.rows < 2) return source.rows;
    return source.rows - eval_rows_of(source.rows, options_.eval_fraction);
  }

  void import(const ActivationSource& source, int64_t rows_before, Progress& shown) {
    if (source.was_float64)
      warn(fmt::format("'{}' holds float64; it is rounded to float32", source.path));
    const Columns columns(source);
    const int64_t split = report_.split_by_document ? 0 : first_held_out(source);
    const int64_t row_bytes = source.width * static_cast<int64_t>(size_of(source.dtype));
    const int64_t block = std::max<int64_t>(1, kBlockBytes / row_bytes);
    std::vector<std::byte> rows(static_cast<size_t>(block * row_bytes));
    for (int64_t begin = 0; begin < source.rows; begin += block) {
      const Range range{begin, std::min(source.rows, begin + block)};
      source.read(range, rows.data());
      for (int64_t row = range.begin; row < range.end; ++row) {
        if (!columns.kept(row)) {
          ++report_.masked_rows;
          continue;
        }
        const bool held = report_.split_by_document
                              ? held_out_.contains(columns.document[static_cast<size_t>(row)])
                              : row >= split;
        append(source, row, rows.data() + (row - range.begin) * row_bytes, columns,
               held ? evaluation_ : training_);
      }
      shown.at(rows_before + range.end);
    }
  }

  void append(const ActivationSource& source, int64_t row, const std::byte* bytes,
              const Columns& columns, ShardSetWriter& writer) {
    const int64_t width = facts_.width;
    float_row_.resize(static_cast<size_t>(width));
    stored_.resize(static_cast<size_t>(width) * size_of(facts_.dtype));
    const int64_t bad = first_non_finite(bytes, source.dtype, width);
    convert_to_float(bytes, source.dtype, width, float_row_.data());
    convert_from_float(float_row_.data(), width, facts_.dtype, stored_.data());
    const int64_t overflown = first_non_finite(stored_.data(), facts_.dtype, width);
    if (bad >= 0 || overflown >= 0)
      fail(ExitCode::bad_data,
           fmt::format("cannot import '{}': row {}, column {} is {}", source.path, row,
                       std::max(bad, overflown),
                       bad >= 0 ? "not finite"
                                : fmt::format("{}, too large for {}",
                                              float_row_[static_cast<size_t>(overflown)],
                                              name_of(facts_.dtype))));
    statistics_.add(float_row_.data(), width);
    const auto at = [&](const std::vector<uint32_t>& column) {
      return column.empty() ? nullptr : &column[static_cast<size_t>(row)];
    };
    writer.append(
        {stored_.data(), 1, at(columns.tokens), at(columns.position), at(columns.document)});
  }

  const ImportOptions& options_;
  const Sources& sources_;
  DatasetFacts facts_;
  ShardSetWriter training_, evaluation_;
  std::set<uint32_t> held_out_;
  Facts statistics_;
  ImportReport report_;
  std::vector<float> float_row_;
  std::vector<std::byte> stored_;
};

void advise(ImportReport& report) {
  if (report.share_above_10_medians > 0)
    report.advice.push_back(
        "rows far above the median norm: --data.max_norm_multiple 10 leaves "
        "them out of training");
  if (report.gamma > 3)
    report.advice.push_back(
        "the mean is large beside the spread, which predicts dead latents: "
        "--data.center true");
}

}  // namespace

ImportReport import_activations(const ImportOptions& options) {
  const Sources sources = open_sources(options);
  eval_rows_of(2, options.eval_fraction);  // refuses a fraction out of range before any work
  StagedFolder folder(options.out);
  ImportReport report = Importer(options, sources, folder.path()).run();
  for (const std::string& part : {folder.path(), folder.path() + "/eval"}) {
    if (!folder_exists(part)) continue;
    const VerifyReport verified = verify_data_set(part);
    if (!verified.problems.empty())
      fail(ExitCode::bad_data,
           "what was written cannot be read back: " + verified.problems.front());
  }
  folder.commit();
  advise(report);
  return report;
}

std::vector<std::string> describe(const ImportReport& report) {
  std::vector<std::string> lines = {
      fmt::format("rows           {} for training, {} for evaluation ({})", report.training_rows,
                  report.eval_rows,
                  report.split_by_document ? "whole documents" : "the end of each file"),
      fmt::format("width          {} ({})", report.width, name_of(report.dtype)),
      fmt::format("norm           mean {:.4g}, median {:.4g}, {:.4g} % of rows above 10 medians",
                  report.mean_norm, report.median_norm, 100 * report.share_above_10_medians),
      fmt::format("gamma          {:.4g} (|mean| / |standard deviation|)", report.gamma)};
  if (report.masked_rows > 0)
    lines.push_back(fmt::format("left out       {} rows by their mask", report.masked_rows));
  for (const std::string& line : report.advice) lines.push_back("advice         " + line);
  return lines;
}

}  // namespace megadict
