#include "app/sweep.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>

#include "app/sweep_stream.h"
#include "app/sweep_table.h"
#include "app/together.h"
#include "app/training.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/stop_request.h"
#include "comm/agree.h"
#include "comm/watchdog.h"
#include "io/file.h"

namespace megadict {

namespace {

constexpr int64_t kNoPoint = -1;

// Who of one job's groups has taken which point: files that only one can create. Another job that
// works on the same points is kept out by the lock of their folders.
class Claims {
 public:
  Claims(Communicator& world, const std::string& sweep) : folder_(sweep + "/claims") {
    session_ = rank_zero_finds(
        world,
        [&] {
          make_folders(folder_);
          make_folders(sweep + "/points");
          const auto now = std::chrono::system_clock::now().time_since_epoch();
          return fmt::format("{:x}-{}", now.count(), getpid());
        },
        "sweep");
  }

  // False where another group was faster.
  bool take(int64_t index) const {
    const std::string path = fmt::format("{}/{}.{}", folder_, session_, index);
    const int made = ::open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
    if (made < 0 && errno != EEXIST)
      fail(ExitCode::error, fmt::format("cannot write '{}': {}", path, std::strerror(errno)));
    if (made < 0) return false;
    ::close(made);
    return true;
  }

  // After the last group's end, by rank 0; `all` also those of jobs that crashed.
  void remove(bool all) const {
    for (const std::string& path : list_files(folder_, ""))
      if (all || file_name(path).starts_with(session_ + ".")) remove_file(path);
  }

 private:
  std::string folder_, session_;
};

struct Sweep {
  Launch& group;
  const SweepConfig& config;
  const std::vector<SweepPoint>& points;
  const Claims& claims;
  const Args& args;
  int64_t cursor = 0;            // points before it are nobody's to take any more
  SharedStream* rows = nullptr;  // of the wave under way; nullptr = each point reads by itself
  bool unrecorded = false;       // a point's end could not be written down
  bool leads() const { return group.facts().rank == 0; }
};

bool wanted(const Sweep& sweep, const PointRecord& record) {
  if (record.status == "done") return false;
  return record.status != "failed" || sweep.config.retry || sweep.config.only >= 0;
}

// What a group works on; lock and error are its first rank's.
struct TakenPoint {
  int64_t index = kNoPoint;
  FolderLock lock;             // of its folder, until its end is recorded
  std::optional<Error> error;  // why the folder cannot be had: the point's failure
};

// False where another process has it.
bool lock_folder(const std::string& folder, TakenPoint& taken) {
  try {
    refuse_obstacle(folder);
    make_folders(folder);
    return taken.lock.take(folder);
  } catch (const Error& error) {
    taken.error = error;
    return true;
  }
}

void leave_out(const Sweep& sweep, int64_t index) {
  const std::string what = fmt::format("point {}", index), why = "another process works on it";
  if (sweep.config.only < 0) return tell(fmt::format("{} is left out: {}", what, why));
  sweep.claims.remove(false);
  fail(ExitCode::usage, fmt::format("{} is busy: {}", what, why), "wait until that one has ended");
}

bool take(const Sweep& sweep, int64_t index, TakenPoint& taken) {
  const std::string folder = point_folder(sweep.config.dir, sweep.points[index]);
  if (!wanted(sweep, read_record(folder)) || !sweep.claims.take(index)) return false;
  if (!lock_folder(folder, taken)) {
    leave_out(sweep, index);
    return false;
  }
  // Again: who was faster may have ended it by now.
  if (!wanted(sweep, read_record(folder))) {
    taken = {};
    return false;
  }
  taken.index = index;
  return true;
}

// The next point for this group; on its first rank.
TakenPoint take_next(Sweep& sweep) {
  TakenPoint taken;
  const auto count = static_cast<int64_t>(sweep.points.size());
  while (sweep.cursor < count && taken.index == kNoPoint) {
    const int64_t index = sweep.cursor++;
    if (sweep.config.only < 0 || index == sweep.config.only) take(sweep, index, taken);
  }
  return taken;
}

// The same on all ranks of the group; none after a signal to any of them.
TakenPoint next_point(Sweep& sweep) {
  Communicator& world = sweep.group.world();
  TakenPoint taken;
  if (agreed_stop(world) != StopRequest::none) return taken;
  agree(world, [&] {
    if (sweep.leads()) taken = take_next(sweep);
  });
  world.broadcast(view_of(&taken.index, 1), 0, "next point");
  return taken;
}

std::string short_result(const PointRecord& record) {
  std::string text;
  for (const char* name : {"fvu", "l0", "train/fvu", "train/l0"})
    if (const auto value = record.metrics.find(name); value != record.metrics.end())
      text += fmt::format(", {} {:.5g}", name, value->second);
  return text;
}

// Ends the job where the other ranks of the group cannot know of this one's error.
PointRecord failure(const Sweep& sweep, const Error& error) {
  const bool alone = sweep.group.facts().ranks == 1;
  if (error.code() == ExitCode::comm || !(alone || error.agreed())) throw error;
  return {.status = "failed", .code = error.code(), .error = error.line()};
}

// One point from its start or where it was interrupted. A stop leaves no record.
PointRecord train_point(Sweep& sweep, const SweepPoint& point, const std::string& folder,
                        TakenPoint& taken) {
  Settings settings = point.settings;
  settings.config.run.dir = folder;
  settings.config.run.resume = "auto";
  settings.sources["run.dir"] = settings.sources["run.resume"] = "sweep";
  try {
    std::optional<LogFile> log;
    agree(sweep.group.world(), [&] {
      if (taken.error) throw *taken.error;
      // The record of an earlier try: a point that is stopped has none, and goes on.
      if (sweep.leads()) forget_record(folder);
      log.emplace(sweep.leads() ? folder + "/log.txt" : "");
    });
    const ExitCode code = train_dictionary(sweep.group, settings, sweep.args, taken.lock,
                                           sweep.group.facts().ranks > 1, sweep.rows);
    return {.status = code == ExitCode::done ? "done" : "interrupted", .code = code};
  } catch (const std::exception& error) {
    return failure(sweep, error_of(error));
  }
}

// On the group's first rank.
void record_end(const SweepPoint& point, const std::string& folder, int64_t index,
                PointRecord& record) {
  if (record.status == "failed")
    tell(fmt::format("point {} failed with {}: {}", index, static_cast<int>(record.code),
                     record.error));
  // What stands in the folder's place is the record of its failure.
  if (record.status != "interrupted" && obstacle_at(folder).empty()) {
    record.settings = fixed_settings(point);
    write_record(folder, point, record);
    record = read_record(folder);
  }
  if (record.status != "failed")
    tell(fmt::format("point {} {} after {:.1f} s{}", index,
                     record.status == "done" ? "is done" : "is saved", record.seconds,
                     short_result(record)));
}

ExitCode run_point(Sweep& sweep, TakenPoint& taken) {
  const SweepPoint& point = sweep.points[static_cast<size_t>(taken.index)];
  const std::string folder = point_folder(sweep.config.dir, point);
  if (sweep.leads()) tell(fmt::format("point {} begins: {}", taken.index, folder));
  const double begin_s = seconds_now();
  PointRecord record = train_point(sweep, point, folder, taken);
  set_watchdog_step(-1);
  record.seconds = seconds_now() - begin_s;
  try {
    agree(sweep.group.world(), [&] {
      if (sweep.leads()) record_end(point, folder, taken.index, record);
    });
  } catch (const std::exception& error) {
    const PointRecord lost = failure(sweep, error_of(error));
    sweep.unrecorded = true;
    if (sweep.leads())
      tell(fmt::format("point {} has no record of its end: {}", taken.index, lost.error));
  }
  return record.code;
}

// 75 and 143 after a signal to this rank; 1 where the table cannot tell of a failure.
ExitCode code_of_end(const Sweep& sweep) {
  const ExitCode code = code_of(stop_requested());
  return code == ExitCode::done && sweep.unrecorded ? ExitCode::error : code;
}

// Until nothing is left to take. The code of its end.
ExitCode run_group(Sweep& sweep) {
  for (;;) {
    TakenPoint taken = next_point(sweep);
    if (taken.index == kNoPoint) return code_of_end(sweep);
    const ExitCode code = run_point(sweep, taken);
    if (code == ExitCode::requeue || code == ExitCode::terminated) return code;
  }
}

// The same, all groups together: a point each, then all meet. Who has none, or whose point has
// ended, still takes part in the others' stream.
ExitCode run_waves(Sweep& sweep, Communicator& world, StreamGroups& stream) {
  for (;;) {
    TakenPoint taken = next_point(sweep);
    world.wait_for_all();
    auto points = static_cast<int32_t>(taken.index != kNoPoint && sweep.leads());
    world.all_reduce(view_of(&points, 1), ReduceOp::sum, "points of a wave");
    if (points == 0) return code_of_end(sweep);
    const std::unique_ptr<SharedStream> rows = stream.next_wave();
    sweep.rows = rows.get();
    if (taken.index != kNoPoint) run_point(sweep, taken);
    rows->finish();
  }
}

struct Counts {
  int64_t done = 0, failed = 0, running = 0, open = 0, all = 0;
};

Counts count_points(const SweepConfig& config, const std::vector<PointRecord>& records) {
  Counts counts;
  for (size_t i = 0; i < records.size(); ++i) {
    if (config.only >= 0 && static_cast<int64_t>(i) != config.only) continue;
    const std::string& status = records[i].status;
    ++counts.all;
    ++(status == "done"      ? counts.done
       : status == "failed"  ? counts.failed
       : status == "running" ? counts.running
                             : counts.open);
  }
  return counts;
}

std::string summary(const SweepConfig& config, const Counts& counts) {
  const std::string elsewhere =
      counts.running > 0 ? fmt::format(", {} point(s) open elsewhere", counts.running) : "";
  return fmt::format(
      "{} of {} points done, {} failed, {} open{}; table in {}/sweep.csv and "
      "sweep.json",
      counts.done, counts.all, counts.failed, counts.open, elsewhere, config.dir);
}

// Table, summary and the claims' end; rank 0 alone.
ExitCode conclude(const SweepConfig& config, const std::vector<SweepPoint>& points,
                  const Claims& claims, ExitCode stopped) {
  const CollectedTable table = collect_table(config.dir, points, config.sort);
  const Counts counts = count_points(config, table.records);
  claims.remove(config.only < 0 && counts.done == counts.all);
  say(table.text);
  say(summary(config, counts));
  if (counts.failed > 0 && !config.retry)
    note("note: failed points stay as they are. hint: --retry tries them again");
  if (stopped != ExitCode::done) return stopped;
  return counts.failed > 0 ? ExitCode::error : ExitCode::done;
}

}  // namespace

int groups_for(int ranks, const std::vector<SweepPoint>& points) {
  const int most = static_cast<int>(points.size());
  for (int groups = ranks; groups > 1; --groups) {
    const auto fits = [&](const SweepPoint& point) {
      const MeshConfig& mesh = point.settings.config.mesh;
      const int least = std::max(mesh.data, 1) * std::max(mesh.feature, 1);
      const int own = ranks / groups;
      // A mesh that is given whole is taken whole.
      return mesh.data > 0 && mesh.feature > 0 ? own == least : own % least == 0 && groups <= most;
    };
    if (ranks % groups == 0 && std::all_of(points.begin(), points.end(), fits)) return groups;
  }
  return 1;
}

ExitCode run_sweep(Launch& launch, const SweepConfig& config, const std::vector<SweepPoint>& points,
                   const Args& args) {
  const Claims claims(launch.world(), config.dir);
  rank_zero_first(launch.world(), [&] {
    for (const SweepPoint& point : points) {
      const std::string folder = point_folder(config.dir, point);
      refuse_other_settings(folder, fixed_settings(point), read_record(folder));
    }
  });
  const int per_group = launch.facts().ranks / config.groups;
  say(fmt::format("{} points, {} group(s) of {} rank(s), in {}", points.size(), config.groups,
                  per_group, config.dir));
  const bool shares = config.share_stream && config.groups > 1;
  if (shares)
    say(fmt::format("{} points at a time share one stream; group 0 reads it", config.groups));
  else if (config.share_stream)
    note("note: sweep.share_stream has no effect: there is one group");
  ExitCode code = ExitCode::done;
  {
    const int index = launch.facts().rank / per_group;
    Launch group(launch, index);
    Sweep sweep{group, config, points, claims, args};
    if (shares) {
      StreamGroups stream(launch, group, index, points.front().settings);
      code = run_waves(sweep, launch.world(), stream);
    } else {
      code = run_group(sweep);
    }
  }
  launch.world().wait_for_all();
  auto stopped = static_cast<int32_t>(code);
  launch.world().all_reduce(view_of(&stopped, 1), ReduceOp::max, "stopped groups");
  code = static_cast<ExitCode>(stopped);
  if (code != ExitCode::done) ignore_stop_signals();
  int32_t result = 0;
  agree(launch.world(), [&] {
    if (launch.facts().rank == 0)
      result = static_cast<int32_t>(conclude(config, points, claims, code));
  });
  launch.world().broadcast(view_of(&result, 1), 0, "result");
  return static_cast<ExitCode>(result);
}

}  // namespace megadict
