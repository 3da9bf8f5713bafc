// megadict bench loader: the batch stream as training uses it, beside plain reads of its files.
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <unordered_map>

#include "app/bench.h"
#include "app/together.h"
#include "base/clock.h"
#include "base/error.h"
#include "data/batch_stream.h"
#include "data/row_reader.h"
#include "data/rows.h"
#include "io/file.h"
#include "io/hdf5_file.h"
#include "io/raw_read.h"

namespace megadict {

namespace {

struct Subject {
  Communicator& world;
  const Mesh mesh;
  const ShardIndex index;
  const BatchPlan plan;

  Subject(Communicator& ranks, const LoaderBench& options, ShardIndex shards)
      : world(ranks),
        mesh(make_mesh(ranks, resolve_mesh(options.mesh, ranks.size()))),
        index(std::move(shards)),
        plan(index, options.data, 0) {}

  int64_t row_bytes() const {
    return index.width() * static_cast<int64_t>(size_of(index.facts().dtype));
  }
  double delivered_bytes() const {
    return static_cast<double>(plan.tokens_at(plan.steps()) * row_bytes());
  }
  double stored_bytes() const;
  // Every micro-batch of this rank, in order.
  void for_each(int queue, const std::function<void(const MicroBatch&)>& use) const;
};

double Subject::stored_bytes() const {
  double sum = 0;
  for (const ShardInfo& shard : index.shards()) sum += static_cast<double>(file_size(shard.path));
  return sum;
}

void Subject::for_each(int queue, const std::function<void(const MicroBatch&)>& use) const {
  BatchStream stream(index, plan, mesh.data_size(), mesh.feature_size(), mesh.data_index,
                     mesh.feature_index, 0, queue);
  for (int64_t step = 0; step < plan.steps(); ++step)
    for (int64_t micro = 0; micro < plan.micro_batches(step); ++micro) use(stream.next());
}

// Seconds of the slowest rank.
double timed(Communicator& world, const std::function<void()>& work) {
  world.barrier("bench");
  const double start = seconds_now();
  work();
  double seconds = seconds_now() - start;
  world.all_reduce(view_of(&seconds, 1), ReduceOp::max, "bench");
  return seconds;
}

void for_files(const Subject& subject, const std::function<void(const std::string&)>& work) {
  for (const ShardInfo& shard : subject.index.shards()) work(shard.path);
}

// One kind of pass: what it is called, what it does and how much it moves.
struct Pass {
  const char* name;
  bool rank_zero_alone;  // plain reads: the files once, whatever the number of ranks
  std::function<void()> work;
  double bytes;
  std::vector<double> seconds = {};
  double processor_s = 0;  // of rank 0, in all passes
};

void run(const Subject& subject, Pass& pass) {
  const bool idle = pass.rank_zero_alone && subject.world.rank() != 0;
  const double before = processor_seconds();
  pass.seconds.push_back(timed(subject.world, idle ? [] {} : pass.work));
  pass.processor_s += processor_seconds() - before;
}

std::vector<Pass> passes_of(const Subject& subject, int queue, bool& direct_works) {
  return {
      {"read in order", true, [&subject] { for_files(subject, read_in_order); },
       subject.stored_bytes()},
      {"read past the cache", true,
       [&subject, &direct_works] {
         for_files(subject, [&](const std::string& path) {
           direct_works = direct_works && read_past_cache(path).has_value();
         });
       },
       subject.stored_bytes()},
      {"batch stream", false,
       [&subject, queue] { subject.for_each(queue, [](const MicroBatch&) {}); },
       subject.delivered_bytes()},
  };
}

// The last line is the stream, bound by the fastest of the others.
void add_lines(std::vector<Pass> passes, const char* state, BenchReport& report) {
  double fastest = 0;
  for (Pass& pass : passes) {
    BenchLine line =
        line_of(fmt::format("{}, {}", pass.name, state), pass.seconds, pass.bytes, "GB/s");
    line.processor_s = pass.processor_s / static_cast<double>(pass.seconds.size());
    if (pass.rank_zero_alone) {
      fastest = std::max(fastest, line.work / line.median_s);
    } else {
      line.bound = fastest;
      line.bound_name = "plain reads";
      report.title +=
          fmt::format("; {:.2f} processor seconds a GB", line.processor_s / line.work * 1e9);
    }
    report.lines.push_back(line);
  }
}

double cached_share(const Subject& subject) {
  double cached = 0;
  for_files(subject,
            [&](const std::string& path) { cached += static_cast<double>(cached_bytes(path)); });
  return cached / subject.stored_bytes();
}

// Streams made anew and plain reads by turns.
void measure_cold(const Subject& subject, const LoaderBench& options, BenchReport& report) {
  bool direct_works = true;
  std::vector<Pass> passes = passes_of(subject, options.data.queue, direct_works);
  double kept = 0;
  for (int i = 0; i < options.repeats; ++i)
    for (Pass& pass : passes) {
      for_files(subject, drop_from_cache);
      kept = std::max(kept, cached_share(subject));
      run(subject, pass);
    }
  uint8_t works = direct_works ? 1 : 0;
  subject.world.broadcast(view_of(&works, 1), 0, "bench");
  if (works == 0) passes.erase(passes.begin() + 1);
  report.title += fmt::format("\ncold: {:.1f} % of the files stayed in the page cache", 100 * kept);
  add_lines(std::move(passes), "cold", report);
}

// One stream over several passes, as a run has it. The first pass is a line of its own: it waits
// for a whole window and for memory that nobody has used before.
std::vector<double> passes_of_one_stream(const Subject& subject, const LoaderBench& options,
                                         double& processor_s) {
  LoaderBench longer = options;
  longer.data.tokens = (options.repeats + 1) * subject.plan.rows_per_epoch();
  const Subject all(subject.world, longer, subject.index);
  std::vector<double> seconds;
  subject.world.barrier("bench");
  double start = seconds_now();
  all.for_each(options.data.queue, [&](const MicroBatch& batch) {
    const int64_t passed = all.plan.tokens_at(batch.step + 1);
    if (!batch.last_of_step || passed % all.plan.rows_per_epoch() != 0) return;
    const double now = seconds_now();
    seconds.push_back(now - start);
    start = now;
    if (seconds.size() == 1) processor_s = -processor_seconds();
  });
  processor_s += processor_seconds();
  subject.world.all_reduce(view_of(seconds.data(), static_cast<int64_t>(seconds.size())),
                           ReduceOp::max, "bench");
  return seconds;
}

void measure_hot(const Subject& subject, const LoaderBench& options, BenchReport& report) {
  for_files(subject, read_in_order);
  report.title += fmt::format("\nhot: {:.1f} % of the files lie in the page cache",
                              100 * cached_share(subject));
  if (options.data.shuffle_buffer >= subject.index.rows())
    report.title += "; one window holds all rows: passes after the first read nothing";
  bool unused = true;
  std::vector<Pass> passes = passes_of(subject, options.data.queue, unused);
  passes.erase(passes.begin() + 1);
  for (int i = 0; i < options.repeats; ++i) run(subject, passes[0]);
  std::vector<double> seconds = passes_of_one_stream(subject, options, passes[1].processor_s);
  report.lines.push_back(
      line_of("first pass, hot", {seconds[0]}, subject.delivered_bytes(), "GB/s"));
  passes[1].seconds.assign(seconds.begin() + 1, seconds.end());
  add_lines(std::move(passes), "hot", report);
}

// Hashes of delivered rows against those of the same rows as the library reads them, through its
// own filter and in the order of the files.
struct Comparison {
  std::unordered_map<int64_t, uint64_t> delivered;  // by global row
  int64_t compared = 0, wrong = 0;
};

void compare_shard(const Subject& subject, const ShardInfo& shard, Comparison& out) {
  const Hdf5File file = Hdf5File::open(shard.path);
  const auto row_bytes = static_cast<size_t>(subject.row_bytes());
  const int64_t at_once = shard.chunk_rows * 8;
  std::vector<std::byte> rows(static_cast<size_t>(at_once) * row_bytes);
  for (int64_t begin = 0; begin < shard.rows.size(); begin += at_once) {
    const Range part{begin, std::min(begin + at_once, shard.rows.size())};
    file.read_rows("activations", part,
                   {rows.data(), part.size() * subject.index.width(), subject.index.facts().dtype});
    for (int64_t i = 0; i < part.size(); ++i) {
      const auto found = out.delivered.find(shard.rows.begin + begin + i);
      if (found == out.delivered.end()) continue;
      ++out.compared;
      if (found->second != hash_bytes(rows.data() + static_cast<size_t>(i) * row_bytes, row_bytes))
        ++out.wrong;
    }
  }
}

// A row delivered twice or out of the plan's order is wrong as well.
Comparison compare(const Subject& subject, int queue) {
  Comparison out;
  int64_t delivered = 0;
  const auto row_bytes = static_cast<size_t>(subject.row_bytes());
  subject.for_each(queue, [&](const MicroBatch& batch) {
    const std::vector<int64_t> planned = subject.plan.rows(batch.step, batch.micro);
    const auto owned = planned.begin() + batch.part.row_range.begin + batch.part.owned.begin;
    for (size_t i = 0; i < batch.row_ids.size(); ++i) {
      if (batch.row_ids[i] != owned[static_cast<std::ptrdiff_t>(i)]) ++out.wrong;
      out.delivered[batch.row_ids[i]] = hash_bytes(batch.data.data() + i * row_bytes, row_bytes);
      ++delivered;
    }
  });
  for (const ShardInfo& shard : subject.index.shards()) compare_shard(subject, shard, out);
  out.wrong += delivered - out.compared;
  int64_t sums[2] = {out.compared, out.wrong};
  subject.world.all_reduce(view_of(sums, 2), ReduceOp::sum, "bench");
  out.compared = sums[0];
  out.wrong = sums[1];
  return out;
}

}  // namespace

BenchReport bench_loader(Communicator& world, const LoaderBench& options) {
  ShardIndex index;
  rank_zero_first(world, [&] { index = ShardIndex::open(options.data.path); });
  refuse_other_shards(world, index, options.data.path);
  const Subject subject(world, options, std::move(index));
  BenchReport report;
  report.title = fmt::format(
      "loader: {} rows of {} x {}, {} shards, {:.2f} GB; batches of {}, windows of {}, mesh {}",
      subject.index.rows(), subject.index.width(), name_of(subject.index.facts().dtype),
      subject.index.shards().size(), subject.stored_bytes() / 1e9, options.data.batch_size,
      options.data.shuffle_buffer, subject.mesh.name());
  if (options.cold) measure_cold(subject, options, report);
  measure_hot(subject, options, report);
  const Comparison comparison = compare(subject, options.data.queue);
  report.lines.back().compared = comparison.compared;
  report.lines.back().wrong = comparison.wrong;
  return report;
}

}  // namespace megadict
