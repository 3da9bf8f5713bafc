#include "app/sweep_evaluate.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "app/dictionary_source.h"
#include "app/memory_check.h"
#include "app/options.h"
#include "app/plan.h"
#include "app/sweep_table.h"
#include "app/together.h"
#include "app/truth.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/stop_request.h"
#include "comm/agree.h"
#include "comm/mesh.h"
#include "comm/watchdog.h"
#include "eval/evaluate.h"
#include "io/file.h"
#include "io/json_file.h"
#include "model/checkpoint_reader.h"
#include "model/formats.h"
#include "model/saved.h"

namespace megadict {

namespace {

struct EvaluationOptions {
  std::vector<std::string> paths;
  std::string dir, data, checkpoints = "all", weights = "last", truth, sort;
  int64_t tokens = 0, batch_size = 4096, peer_batch = 4096, together = 0;
  int threads = 0;
  bool list = false;
  MeshConfig mesh;
};

OptionSet options(EvaluationOptions& own) {
  return {
      .command = "sweep --evaluate",
      .summary =
          "Judges the dictionaries of --evaluate PATH PATH ... (runs, sweeps, "
          "checkpoints, other tools' files) in one pass over held-out rows.",
      .fields =
          {{"sweep.dir", &own.dir, "", "folder of the sweep: points/NAME, sweep.csv, sweep.json"},
           {"data.path", &own.data, "", "shards; a folder that has eval/ is judged on that"},
           {"checkpoints", &own.checkpoints, "", "of a run: all it has kept, or the newest",
            one_of({"all", "newest"})},
           {"weights", &own.weights, "", "the last ones, their average, or both where there is one",
            one_of({"last", "ema", "both"})},
           {"eval.truth", &own.truth, "",
            "folder of `data synth`: adds mcc against its dictionary"},
           {"eval.tokens", &own.tokens, "rows", "the first so many; 0 = all", between(0, 1e15)},
           {"eval.peer_batch", &own.peer_batch, "rows", "of the batches by which peers average",
            between(1, 1e7)},
           {"together", &own.together, "dictionaries",
            "in one pass over the rows; 0 = as many as fit into memory", between(0, 1e6)},
           {"data.batch_size", &own.batch_size, "rows",
            "of a pass, at most a peers' batch; changes memory and speed alone", between(1, 1e9)},
           {"mesh.data", &own.mesh.data, "ranks", "parts of the batch; 0 = auto",
            between(0, 1048576)},
           {"mesh.feature", &own.mesh.feature, "ranks", "parts of each dictionary; 0 = auto",
            between(0, 1048576)},
           {"run.threads", &own.threads, "threads", "per rank; 0 = cpus / ranks that share them",
            between(0, 4096)},
           {"sort", &own.sort, "", "the table's column; -NAME: the largest first; default fvu"},
           {"list", &own.list, "", "print the dictionaries and end"}},
      .required = {"data.path"}};
}

constexpr std::string_view kFlag = "--evaluate";

// --evaluate takes every word up to the next flag, --list none.
Args plain_args(const Args& args, std::vector<std::string>& paths) {
  Args plain;
  for (size_t i = 0; i < args.size(); ++i) {
    const bool has_next = i + 1 < args.size() && !args[i + 1].starts_with("--");
    if (args[i] == kFlag) {
      while (i + 1 < args.size() && !args[i + 1].starts_with("--")) paths.push_back(args[++i]);
    } else if (args[i].starts_with(std::string(kFlag) + "=")) {
      paths.push_back(args[i].substr(kFlag.size() + 1));
    } else {
      plain.push_back(args[i]);
      if (args[i] == "--list" && !has_next) plain.emplace_back("true");
    }
  }
  return plain;
}

int64_t whole_bytes(int64_t latents, int64_t d) {
  return 2 * latents * (d + 2) * 4;
}

// One dictionary to judge.
struct Candidate {
  std::string folder, weights;  // "last", "ema"
  int64_t n = 0, d = 0, step = 0, tokens = 0;
  bool foreign = false;  // read whole by every rank
};

void to_json(nlohmann::json& json, const Candidate& c) {
  json = {{"folder", c.folder}, {"weights", c.weights}, {"n", c.n}, {"d", c.d}, {"step", c.step},
          {"tokens", c.tokens}, {"foreign", c.foreign}};
}

void from_json(const nlohmann::json& json, Candidate& c) {
  json.at("folder").get_to(c.folder);
  json.at("weights").get_to(c.weights);
  json.at("n").get_to(c.n);
  json.at("d").get_to(c.d);
  json.at("step").get_to(c.step);
  json.at("tokens").get_to(c.tokens);
  json.at("foreign").get_to(c.foreign);
}

// What a run has kept, the end last. A checkpoint of the step at which it ended is final/.
std::vector<std::string> kept_by(const std::string& run) {
  const std::string newest = find_checkpoint(run), final = run + "/final";
  std::vector<std::string> folders;
  for (const SavedStep& saved : saved_steps(run)) folders.push_back(saved.folder);
  if (newest != final) return folders;
  const int64_t end = CheckpointReader(final).state().step;
  const std::vector<SavedStep> steps = saved_steps(run);
  if (!steps.empty() && steps.back().step == end) folders.pop_back();
  folders.push_back(final);
  return folders;
}

// Folders that `path` stands for: a dictionary's own, a run's, those of a sweep's points.
std::vector<std::string> folders_of(const std::string& path, const std::string& checkpoints) {
  if (file_exists(path + "/state.json") || foreign_format(path) != nullptr) return {path};
  if (!folder_exists(path + "/points"))
    return checkpoints == "all" ? kept_by(path) : std::vector{find_checkpoint(path)};
  std::vector<std::string> folders;
  for (const std::string& point : list_files(path + "/points", "")) {
    if (newest_state(point).empty()) {
      note(fmt::format("note: '{}' holds no dictionary and is left out", point));
      continue;
    }
    for (std::string& folder : folders_of(point, checkpoints)) folders.push_back(std::move(folder));
  }
  return folders;
}

// Other tools' dictionaries that rank 0 has read to learn their shape, up to a quarter of what was
// free: they need not be read again.
struct KeptWhole {
  std::map<std::string, SavedDictionary> by_folder;
  int64_t bytes = 0,
          most = free_memory() < 0 ? std::numeric_limits<int64_t>::max() : free_memory() / 4;

  void keep(const std::string& folder, SavedDictionary saved) {
    const int64_t more = whole_bytes(saved.dictionary.n, saved.dictionary.d);
    if (bytes + more > most) return;
    bytes += more;
    by_folder.emplace(folder, std::move(saved));
  }
};

// With each kind of its weights that is asked for.
std::vector<Candidate> candidates_at(const std::string& folder, const std::string& weights,
                                     KeptWhole& kept) {
  if (foreign_format(folder) != nullptr) {
    // Shape and soundness are known once it is read.
    SavedDictionary saved = load_saved(folder, weights == "both" ? "last" : weights);
    const Candidate found{folder,       "last", saved.dictionary.n, saved.dictionary.d, saved.step,
                          saved.tokens, true};
    kept.keep(folder, std::move(saved));
    return {found};
  }
  const CheckpointReader reader(folder);
  const auto with = [&](const char* name) {
    return Candidate{
        folder, name, reader.n(), reader.d(), reader.state().step, reader.state().tokens};
  };
  if (weights == "last") return {with("last")};
  const bool has_average = reader.has("ema.W_enc");
  if (weights == "both" && !has_average) return {with("last")};
  if (!has_average)
    fail_agreed(ExitCode::usage, fmt::format("{} holds no averaged weights", in_quotes(folder)),
                "--weights both takes averages where there are some");
  if (weights == "ema") return {with("ema")};
  return {with("last"), with("ema")};
}

// All, in the order in which they were named. On rank 0.
std::vector<Candidate> find_candidates(const EvaluationOptions& own, const ShardIndex& data,
                                       KeptWhole& kept) {
  std::vector<Candidate> all;
  std::set<std::string> seen;
  for (const std::string& path : own.paths)
    for (const std::string& folder : folders_of(path, own.checkpoints)) {
      if (!seen.insert(std::filesystem::canonical(folder)).second)
        fail_agreed(ExitCode::usage,
                    fmt::format("--evaluate names a dictionary twice: {}", in_quotes(folder)));
      for (Candidate& candidate : candidates_at(folder, own.weights, kept)) {
        refuse_other_width(folder, candidate.d, held_out(own.data), data);
        all.push_back(std::move(candidate));
      }
    }
  if (all.empty())
    fail_agreed(ExitCode::usage, "--evaluate: there is no dictionary at these paths");
  return all;
}

// Rank 0's answer on every rank: a run that goes on may save another meanwhile.
std::vector<Candidate> agreed_candidates(Communicator& world, const EvaluationOptions& own,
                                         const ShardIndex& data, KeptWhole& kept) {
  const std::string text = rank_zero_finds(
      world, [&] { return nlohmann::json(find_candidates(own, data, kept)).dump(); },
      "dictionaries");
  return nlohmann::json::parse(text).get<std::vector<Candidate>>();
}

// Rows of the table.
std::vector<SweepPoint> points_for(const std::vector<Candidate>& candidates,
                                   const EvaluationOptions& own) {
  std::vector<SweepPoint> points;
  for (const Candidate& c : candidates) {
    SweepPoint point;
    point.values = {{"dictionary", c.folder, ""},
                    {"step", fmt::format("{}", c.step), ""},
                    {"n_latents", fmt::format("{}", c.n), ""}};
    if (own.weights == "both") point.values.push_back({"weights", c.weights, ""});
    point.name = point_name(c.folder, c.weights == "ema" ? "ema" : "");
    points.push_back(std::move(point));
  }
  return points;
}

struct Evaluation {
  Launch& launch;
  const EvaluationOptions& own;
  const Mesh& mesh;
  const ShardIndex& data;
  at::Tensor truth_nd;
  const std::vector<Candidate>& candidates;
  KeptWhole& kept;
  const std::vector<SweepPoint>& points;
  std::string folder(size_t i) const { return point_folder(own.dir, points[i]); }
  bool leads() const { return launch.facts().rank == 0; }
};

// What another evaluation of the same folder must have alike.
std::map<std::string, std::string> settings_of(const Evaluation& eval, size_t i) {
  const Candidate& c = eval.candidates[i];
  const EvaluationOptions& own = eval.own;
  return {{"data", eval.data.fingerprint()},
          {"eval.tokens", fmt::format("{}", own.tokens)},
          {"eval.peer_batch", fmt::format("{}", own.peer_batch)},
          {"eval.truth", own.truth},
          {"dictionary", c.folder},
          {"step", fmt::format("{}", c.step)},
          {"tokens", fmt::format("{}", c.tokens)}};
}

// Those that have no record yet, as rank 0 sees it.
std::vector<size_t> open_points(const Evaluation& eval) {
  std::vector<uint8_t> is_open(eval.points.size(), 0);
  agree(eval.launch.world(), [&] {
    if (!eval.leads()) return;
    for (size_t i = 0; i < eval.points.size(); ++i) {
      const PointRecord record = read_record(eval.folder(i));
      refuse_other_settings(eval.folder(i), settings_of(eval, i), record);
      is_open[i] = record.status == "done" ? 0 : 1;
    }
  });
  eval.launch.world().broadcast(view_of(is_open.data(), std::ssize(is_open)), 0, "open points");
  std::vector<size_t> open;
  for (size_t i = 0; i < is_open.size(); ++i)
    if (is_open[i] != 0) open.push_back(i);
  return open;
}

// Bytes of a rank while this one is judged, and besides while it is read.
struct Footprint {
  int64_t held = 0, reading = 0;
};

Footprint footprint(const Evaluation& eval, size_t i) {
  const Candidate& c = eval.candidates[i];
  // A peers' batch is kept until its end.
  const int64_t batch = ceil_div(eval.own.peer_batch, eval.mesh.world->size()) * c.d * 4;
  const int64_t mine = whole_bytes(ceil_div(c.n, eval.mesh.feature_size()), c.d);
  return {mine + batch, c.foreign ? whole_bytes(c.n, c.d) : 0};
}

// Cut where the next one would not fit beside the others: half of what is free is theirs, the rest
// the pass's own.
std::vector<std::vector<size_t>> groups_that_fit(const Evaluation& eval,
                                                 const std::vector<size_t>& open, int64_t& budget) {
  const int64_t free = free_memory();
  budget =
      free < 0 ? std::numeric_limits<int64_t>::max() : free / eval.launch.facts().local_ranks / 2;
  eval.launch.world().all_reduce(view_of(&budget, 1), ReduceOp::min, "free memory");
  std::vector<std::vector<size_t>> groups;
  int64_t held = 0;
  for (const size_t i : open) {
    const Footprint next = footprint(eval, i);
    const bool is_full = eval.own.together > 0
                             ? !groups.empty() && std::ssize(groups.back()) == eval.own.together
                             : held + next.held + next.reading > budget;
    if (groups.empty() || is_full) {
      groups.emplace_back();
      held = 0;
    }
    groups.back().push_back(i);
    held += next.held;
  }
  return groups;
}

void say_groups(const Evaluation& eval, const std::vector<size_t>& open, int64_t budget,
                const std::vector<std::vector<size_t>>& groups) {
  std::string how = "in one pass over the rows";
  if (groups.size() > 1) {
    size_t most = 0;
    for (const auto& group : groups) most = std::max(most, group.size());
    how = fmt::format("at most {} at a time{}: the rows are read {} times", most,
                      eval.own.together > 0
                          ? std::string()
                          : fmt::format(" (what fits into {} a rank)", bytes_text(budget)),
                      groups.size());
  }
  say(fmt::format("{} dictionaries, {} of them to judge on {}, mesh {}, {}", eval.points.size(),
                  open.size(), held_out(eval.own.data), eval.mesh.name(), how));
}

// One dictionary's numbers into its folder, its lines into log.txt.
void conclude_point(const Evaluation& eval, size_t i, const SavedDictionary& saved,
                    const MetricReport& report, double seconds) {
  const Candidate& c = eval.candidates[i];
  const std::string folder = eval.folder(i);
  agree(eval.launch.world(), [&] {
    if (eval.leads()) make_folders(folder);
  });
  nlohmann::ordered_json json = judgement_json(report, c.folder, held_out(eval.own.data), saved);
  {
    const LogFile log(eval.leads() ? folder + "/log.txt" : "");
    say(metrics_text(report));
    if (eval.truth_nd.defined())
      json.update(judge_against_truth(eval.mesh, saved.dictionary, eval.truth_nd));
  }
  agree(eval.launch.world(), [&] {
    if (!eval.leads()) return;
    write_json(folder + "/eval.json", json);
    PointRecord record{.status = "done", .seconds = seconds};
    record.settings = settings_of(eval, i);
    write_record(folder, eval.points[i], record);
  });
}

SavedDictionary read_shard(const Evaluation& eval, const Candidate& c) {
  const int parts = eval.mesh.feature_size(), index = eval.mesh.feature_index;
  auto kept = eval.kept.by_folder.extract(c.folder);
  if (kept.empty()) return load_shard(c.folder, c.weights, parts, index);
  return shard_of_whole(std::move(kept.mapped()), parts, index);
}

// False where a signal stopped it.
bool judge_group(const Evaluation& eval, const std::vector<size_t>& group) {
  const double begin_s = seconds_now();
  std::vector<SavedDictionary> saved(group.size());
  rank_zero_first(eval.launch.world(), [&] {
    for (size_t g = 0; g < group.size(); ++g)
      saved[g] = read_shard(eval, eval.candidates[group[g]]);
  });
  std::vector<Judged> judged;
  for (const SavedDictionary& one : saved) judged.push_back({one.dictionary, one.normalization});
  const EvaluateArgs args{.rows = eval.own.tokens,
                          .batch_rows = eval.own.batch_size,
                          .peer_batch_rows = eval.own.peer_batch,
                          .heeds_stop = true};
  const std::vector<MetricReport> reports = evaluate_all(eval.mesh, judged, eval.data, args);
  if (reports.empty()) return false;
  const double share_s = (seconds_now() - begin_s) / static_cast<double>(group.size());
  for (size_t g = 0; g < group.size(); ++g)
    conclude_point(eval, group[g], saved[g], reports[g], share_s);
  return true;
}

// All groups, or those before a signal: then 75 or 143.
ExitCode judge_groups(const Evaluation& eval, const std::vector<std::vector<size_t>>& groups) {
  size_t done = 0;
  while (done < groups.size() && judge_group(eval, groups[done])) ++done;
  if (done == groups.size()) return ExitCode::done;
  const StopRequest stop = agreed_stop(eval.launch.world());
  ignore_stop_signals();
  note(
      fmt::format("note: stopped by a signal after {} of {} passes; started again, it goes on with "
                  "those that are open{}",
                  done, groups.size(),
                  eval.own.together == 1 ? "" : ". hint: --together 1 keeps each as it is judged"));
  return code_of(stop);
}

// A training sweep's folder has its own table.
void refuse_folder(const std::string& folder) {
  if (folder_exists(folder + "/claims"))
    fail(ExitCode::usage,
         fmt::format("sweep.dir {} is that of a training sweep", in_quotes(folder)),
         "another sweep.dir");
}

std::string list_text(const std::vector<Candidate>& candidates) {
  std::string text;
  for (size_t i = 0; i < candidates.size(); ++i)
    text += fmt::format("{}{:>4} {}{}", i == 0 ? "" : "\n", i, candidates[i].folder,
                        candidates[i].weights == "ema" ? " (ema)" : "");
  return text;
}

}  // namespace

bool is_evaluation(const Args& args) {
  return std::any_of(args.begin(), args.end(), [](const std::string& word) {
    return word == kFlag || word.starts_with(std::string(kFlag) + "=");
  });
}

std::string help_sweep_evaluation() {
  EvaluationOptions own;
  return help_text(options(own));
}

int run_sweep_evaluation(Launch& launch, const Args& args) {
  EvaluationOptions own;
  read_options(options(own), plain_args(args, own.paths));
  if (own.paths.empty())
    fail_agreed(ExitCode::usage, "--evaluate needs a path",
                "megadict sweep --evaluate runs/a runs/b --data.path acts --sweep.dir sweeps/e");
  if (own.dir.empty() && !own.list)
    fail_agreed(ExitCode::usage, "--sweep.dir is needed and was not given",
                "megadict sweep --help");
  if (!own.list) refuse_output_folder(launch.world(), own.dir);
  start_watchdog({});
  at::set_num_threads(resolve_threads(own.threads, launch.facts()));
  const Mesh mesh = make_mesh(launch.world(), own.mesh);
  ShardIndex data;
  rank_zero_first(launch.world(), [&] { data = ShardIndex::open(held_out(own.data)); });
  refuse_other_shards(launch.world(), data, held_out(own.data));
  KeptWhole kept;
  const std::vector<Candidate> candidates = agreed_candidates(launch.world(), own, data, kept);
  if (own.list) {
    say(list_text(candidates));
    return 0;
  }
  const std::vector<SweepPoint> points = points_for(candidates, own);
  if (!own.sort.empty()) check_sort(own.sort, points);
  refuse_folder_of_shards(data, "sweep.dir", own.dir);
  Evaluation eval{launch, own, mesh, data, {}, candidates, kept, points};
  rank_zero_first(launch.world(), [&] {
    refuse_folder(own.dir);
    if (!own.truth.empty()) eval.truth_nd = read_truth(own.truth, data.width());
  });
  const std::vector<size_t> open = open_points(eval);
  std::erase_if(kept.by_folder, [&](const auto& one) {
    return std::none_of(open.begin(), open.end(),
                        [&](size_t i) { return candidates[i].folder == one.first; });
  });
  FolderLock lock;
  agree(launch.world(), [&] {
    if (!eval.leads()) return;
    make_folders(own.dir);
    if (!lock.take(own.dir))
      fail(ExitCode::usage, fmt::format("another job works in sweep.dir {}", in_quotes(own.dir)),
           "another sweep.dir, or wait until it has ended");
  });
  int64_t budget = 0;
  const auto groups = groups_that_fit(eval, open, budget);
  say_groups(eval, open, budget, groups);
  const ExitCode code = judge_groups(eval, groups);
  agree(launch.world(), [&] {
    if (!eval.leads()) return;
    say(collect_table(own.dir, points, own.sort).text);
    say(fmt::format("table in {0}/sweep.csv and sweep.json. next: tools/frontier.py {0}", own.dir));
  });
  return static_cast<int>(code);
}

}  // namespace megadict
