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
  bool leads() const { return group.facts().rank == 0; }
};

bool wanted(const Sweep& sweep, const PointRecord& record) {
  if (record.status == "done") return false;
  return record.status != "failed" || sweep.config.retry || sweep.config.only >= 0;
}

// Held by another job?
bool is_busy(const std::string& folder) {
  FolderLock lock;
  return folder_exists(folder) && !lock.take(folder);
}

// The next point for this group; on its first rank.
int64_t take_next(Sweep& sweep) {
  const auto count = static_cast<int64_t>(sweep.points.size());
  for (; sweep.cursor < count; ++sweep.cursor) {
    const int64_t index = sweep.cursor;
    if (sweep.config.only >= 0 && index != sweep.config.only) continue;
    const std::string folder = point_folder(sweep.config.dir, sweep.points[index]);
    if (!wanted(sweep, read_record(folder)) || !sweep.claims.take(index)) continue;
    if (is_busy(folder)) {
      tell(fmt::format("point {} is left out: another job works on it", index));
      continue;
    }
    make_folders(folder);
    ++sweep.cursor;
    return index;
  }
  return kNoPoint;
}

// The same on all ranks of the group; none after a signal to any of them.
int64_t next_point(Sweep& sweep) {
  Communicator& world = sweep.group.world();
  auto stop = static_cast<int32_t>(stop_requested());
  world.all_reduce(view_of(&stop, 1), ReduceOp::max, "stop request");
  int64_t index = kNoPoint;
  if (stop != 0) return index;
  agree(world, [&] {
    if (sweep.leads()) index = take_next(sweep);
  });
  world.broadcast(view_of(&index, 1), 0, "next point");
  return index;
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
PointRecord train_point(Sweep& sweep, const SweepPoint& point, const std::string& folder) {
  Settings settings = point.settings;
  settings.config.run.dir = folder;
  settings.config.run.resume = "auto";
  settings.sources["run.dir"] = settings.sources["run.resume"] = "sweep";
  try {
    std::optional<LogFile> log;
    agree(sweep.group.world(), [&] { log.emplace(sweep.leads() ? folder + "/log.txt" : ""); });
    const ExitCode code = train_dictionary(sweep.group, settings, sweep.args,
                                           sweep.group.facts().ranks > 1, sweep.rows);
    return {.status = code == ExitCode::done ? "done" : "interrupted", .code = code};
  } catch (const std::exception& error) {
    return failure(sweep, error_of(error));
  }
}

ExitCode run_point(Sweep& sweep, int64_t index) {
  const SweepPoint& point = sweep.points[static_cast<size_t>(index)];
  const std::string folder = point_folder(sweep.config.dir, point);
  if (sweep.leads()) tell(fmt::format("point {} begins: {}", index, folder));
  // The record of an earlier try: a point that is stopped has none, and goes on.
  agree(sweep.group.world(), [&] {
    if (sweep.leads()) forget_record(folder);
  });
  const double begin_s = seconds_now();
  PointRecord record = train_point(sweep, point, folder);
  set_watchdog_step(-1);
  record.seconds = seconds_now() - begin_s;
  agree(sweep.group.world(), [&] {
    if (!sweep.leads()) return;
    if (record.status != "interrupted") {
      record.settings = fixed_settings(point);
      write_record(folder, point, record);
      record = read_record(folder);
    }
    tell(record.status == "failed" ? fmt::format("point {} failed with {}: {}", index,
                                                 static_cast<int>(record.code), record.error)
                                   : fmt::format("point {} {} after {:.1f} s{}", index,
                                                 record.status == "done" ? "is done" : "is saved",
                                                 record.seconds, short_result(record)));
  });
  return record.code;
}

// Until nothing is left to take. 0, or 75 and 143 after a signal.
ExitCode run_group(Sweep& sweep) {
  for (;;) {
    const int64_t index = next_point(sweep);
    if (index == kNoPoint) return code_of_stop();
    const ExitCode code = run_point(sweep, index);
    if (code == ExitCode::requeue || code == ExitCode::terminated) return code;
  }
}

// The same, all groups together: a point each, then all meet. Who has none, or whose point has
// ended, still takes part in the others' stream.
ExitCode run_waves(Sweep& sweep, Communicator& world, StreamGroups& stream) {
  for (;;) {
    const int64_t index = next_point(sweep);
    world.wait_for_all();
    auto points = static_cast<int32_t>(index != kNoPoint && sweep.leads());
    world.all_reduce(view_of(&points, 1), ReduceOp::sum, "points of a wave");
    if (points == 0) return code_of_stop();
    const std::unique_ptr<SharedStream> rows = stream.next_wave();
    sweep.rows = rows.get();
    if (index != kNoPoint) run_point(sweep, index);
    rows->finish();
  }
}

struct Counts {
  int64_t done = 0, failed = 0, open = 0;
};

Counts count_points(const SweepConfig& config, const std::vector<SweepPoint>& points) {
  Counts counts;
  for (size_t i = 0; i < points.size(); ++i) {
    if (config.only >= 0 && static_cast<int64_t>(i) != config.only) continue;
    const PointRecord record = read_record(point_folder(config.dir, points[i]));
    ++(record.status == "done"     ? counts.done
       : record.status == "failed" ? counts.failed
                                   : counts.open);
  }
  return counts;
}

// Table, summary and the claims' end; rank 0 alone.
ExitCode conclude(const SweepConfig& config, const std::vector<SweepPoint>& points,
                  const Claims& claims, ExitCode stopped) {
  const Counts counts = count_points(config, points);
  claims.remove(config.only < 0 && counts.failed + counts.open == 0);
  say(collect_table(config.dir, points, config.sort));
  say(fmt::format("{} of {} points done, {} failed, {} open; table in {}/sweep.csv and sweep.json",
                  counts.done, counts.done + counts.failed + counts.open, counts.failed,
                  counts.open, config.dir));
  if (counts.failed > 0 && !config.retry)
    note("note: failed points stay as they are. hint: --retry tries them again");
  if (stopped != ExitCode::done) return stopped;
  return counts.failed > 0 ? ExitCode::error : ExitCode::done;
}

}  // namespace

ExitCode code_of_stop() {
  switch (stop_requested()) {
    case StopRequest::none:
      return ExitCode::done;
    case StopRequest::requeue:
      return ExitCode::requeue;
    case StopRequest::terminate:
      return ExitCode::terminated;
  }
  return ExitCode::done;
}

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
