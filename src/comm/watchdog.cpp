#include "comm/watchdog.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "comm/backends.h"
#include "comm/call_watch.h"
#include "comm/launch.h"
#include "comm/watch_window.h"

namespace megadict {

// A parked rank goes on when a debugger sets this to 1.
volatile int debug_go_on = 0;

namespace {

int64_t now_ns() {
  return static_cast<int64_t>(seconds_now() * 1e9);  // one clock for all processes of a node
}

double seconds_since(int64_t ns) {
  return static_cast<double>(now_ns() - ns) * 1e-9;
}

// "NAME" or "NAME:STEP".
struct HangPoint {
  std::string name;
  int64_t step = -2;  // any

  explicit HangPoint(const std::string& text) : name(text) {
    const size_t colon = text.rfind(':');
    if (colon == std::string::npos || colon + 1 == text.size()) return;
    if (text.find_first_not_of("0123456789", colon + 1) != std::string::npos) return;
    name = text.substr(0, colon);
    step = std::strtoll(text.c_str() + colon + 1, nullptr, 10);
  }
  bool is_at(const std::string& call_name, int64_t call_step) const {
    return (name.empty() || name == call_name) && (step == -2 || step == call_step);
  }
};

// 'T' of /proc/PID/stat: stopped by a signal; 0 where it cannot be read.
char process_state(int pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string text;
  std::getline(file, text);
  const size_t name_end = text.rfind(')');  // the name may hold anything
  return name_end == std::string::npos || name_end + 2 >= text.size() ? '\0' : text[name_end + 2];
}

std::string call_text(const RankSlot& slot) {
  return fmt::format("{} '{}' on axis {}, {}", slot.kind.get(), slot.name.get(), slot.axis.get(),
                     step_text(slot.step));
}

class Watchdog {
 public:
  explicit Watchdog(const DebugConfig& config) : config_(config), hang_(config.hang_at) {
    const double limit = config.watchdog_s;
    tick_s_ = std::clamp(limit / 20, 0.01, 1.0);
    RankSlot& slot = window_.mine();
    slot.pulse_ns = now_ns();
    for (const uint64_t communicator : {kWorldCommunicator, kLeavingTogether})
      slot.arrive(communicator, 0);
    window_.meet();
    if (limit > 0) thread_ = std::thread([this] { watch(); });
  }

  ~Watchdog() {
    window_.mine().ended = true;
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
    if (parks_here() && !parked_)
      warn(fmt::format("debug.hang_at '{}' never came", config_.hang_at));
  }

  void enter(const WatchedCall& call) {
    if (parks_here() && hang_.is_at(call.name, step_)) park(call);
    RankSlot& slot = window_.mine();
    slot.kind.set(call.kind);
    slot.name.set(call.name);
    slot.axis.set(call.axis);
    slot.step = step_.load();
    slot.since_ns = now_ns();
    slot.arrive(call.communicator, call.arrivals);
    slot.current = call.communicator;
    slot.calls.fetch_add(1);
    slot.inside = true;
  }

  void leave() {
    RankSlot& slot = window_.mine();
    slot.inside = false;
    slot.since_ns = now_ns();
  }

  // Waits for all ranks, watched like any collective: a rank that never comes is named.
  void leave_together() {
    enter({"barrier", "end of program", "world", kLeavingTogether, 1});
    window_.meet();
    leave();
  }

  bool first_to_speak() { return !window_.node().front()->spoken_for.exchange(true); }
  void announce(uint64_t communicator) { window_.mine().arrive(communicator, 0); }
  void forget(uint64_t communicator) { window_.mine().forget(communicator); }
  void set_step(int64_t step) { step_ = step; }
  const DebugConfig& config() const { return config_; }

  void add_hook(void* owner, void (*hook)(void*)) {
    const std::lock_guard lock(mutex_);
    hooks_[owner] = hook;
  }
  void remove_hook(void* owner) {
    const std::lock_guard lock(mutex_);
    hooks_.erase(owner);
  }

 private:
  bool parks_here() { return config_.hang_rank == window_.mine().world_rank; }

  void park(const WatchedCall& call) {
    parked_ = true;
    warn(
        fmt::format("parked before {} '{}' on axis {}, {}. hint: gdb -p {}, then set var "
                    "megadict::debug_go_on = 1",
                    call.kind, call.name, call.axis, step_text(step_), getpid()));
    while (debug_go_on == 0) usleep(100'000);
  }

  void watch() {
    std::unique_lock lock(mutex_);
    while (
        !changed_.wait_for(lock, std::chrono::duration<double>(tick_s_), [&] { return stop_; })) {
      RankSlot& slot = window_.mine();
      slot.pulse_ns = now_ns();
      if (slot.inside && seconds_since(slot.since_ns) > config_.watchdog_s) {
        lock.unlock();
        expire();
      }
    }
  }

  // The first rank of a node speaks for it; the others leave it the time to, and so does a node
  // where nobody is behind: the line that matters is another node's.
  [[noreturn]] void expire() {
    bool wait = true;
    if (first_to_speak()) {
      // What hangs because of it was perhaps entered earlier: let the cause pass the limit too.
      const double grace_s = std::min(config_.watchdog_s / 4, 2.0);
      std::this_thread::sleep_for(std::chrono::duration<double>(grace_s));
      const RankSlot& stuck = first_stuck();
      const std::string behind = ranks_behind(stuck);
      wait = behind.empty();
      print_error(report(stuck, behind), true);
    }
    if (wait) sleep(5);
    run_hooks();
    abort_all(ExitCode::comm);
  }

  bool is_behind(const RankSlot& slot, const RankSlot& waiting) const {
    const int64_t theirs = slot.arrivals_at(waiting.current);  // -1: no member
    return theirs >= 0 && theirs < waiting.arrivals_at(waiting.current);
  }

  // Past the limit, for a rank that is in no call itself.
  bool waits_for_the_cause(const RankSlot& waiting) {
    if (!waiting.inside || seconds_since(waiting.since_ns) <= config_.watchdog_s) return false;
    return std::any_of(window_.node().begin(), window_.node().end(), [&](const RankSlot* slot) {
      return !slot->inside && is_behind(*slot, waiting);
    });
  }

  // The rank of this node whose call is the one to name: others may wait in later calls for ranks
  // that wait themselves. All run the same program, so what fewer calls went before comes first.
  const RankSlot& first_stuck() {
    const RankSlot* first = &window_.mine();
    bool found = waits_for_the_cause(*first);
    for (const RankSlot* slot : window_.node())
      if (waits_for_the_cause(*slot) && (!found || slot->calls < first->calls)) {
        first = slot;
        found = true;
      }
    return *first;
  }

  // "rank 2 (pid 71 is stopped; ...); rank 3 (...)". Where all have come, whoever does nothing any
  // more: it may have been stopped inside the call.
  std::string ranks_behind(const RankSlot& waiting) const {
    const auto text_of = [&](auto&& concerns) {
      std::string text;
      for (const RankSlot* slot : window_.node())
        if (concerns(*slot))
          text += fmt::format("{}rank {} ({})", text.empty() ? "" : "; ", slot->world_rank.load(),
                              what_it_does(*slot));
      return text;
    };
    const std::string behind = text_of([&](const RankSlot& s) { return is_behind(s, waiting); });
    return behind.empty() ? text_of([&](const RankSlot& s) { return is_stopped(s); }) : behind;
  }

  // Both signs together: a process number may mean another process in another container.
  bool is_stopped(const RankSlot& slot) const {
    return !slot.ended && seconds_since(slot.pulse_ns) > 2 * tick_s_ &&
           std::tolower(process_state(slot.pid)) == 't';  // T: a signal, t: a debugger
  }

  std::string report(const RankSlot& waiting, const std::string& behind) const {
    return fmt::format(
        "{} lasts longer than {:g} s. behind on this node: {}. hint: "
        "--debug.watchdog_s sets the limit, --debug.check_collectives compares calls",
        call_text(waiting), config_.watchdog_s, behind.empty() ? "nobody" : behind);
  }

  std::string what_it_does(const RankSlot& slot) const {
    if (slot.ended) return "has ended";
    const double silent_s = seconds_since(slot.pulse_ns);
    const std::string where =
        slot.inside ? fmt::format("in {}", call_text(slot))
        : slot.since_ns == 0
            ? "before its first collective"
            : fmt::format("left {} {:.1f} s ago", call_text(slot), seconds_since(slot.since_ns));
    if (is_stopped(slot)) return fmt::format("pid {} is stopped; {}", slot.pid.load(), where);
    if (silent_s > std::max(5.0, 5 * tick_s_))
      return fmt::format("pid {} gives no sign of life for {:.0f} s; {}", slot.pid.load(), silent_s,
                         where);
    return fmt::format("pid {} {}", slot.pid.load(), where);
  }

  // In a thread of their own: a hook may hang on what hangs the collective.
  void run_hooks() {
    struct Done {
      std::mutex mutex;
      std::condition_variable changed;
      bool yes = false;
    };
    const auto done = std::make_shared<Done>();
    std::thread([this, done] {
      const std::lock_guard lock(mutex_);
      for (const auto& [owner, hook] : hooks_) hook(owner);
      const std::lock_guard done_lock(done->mutex);
      done->yes = true;
      done->changed.notify_all();
    }).detach();
    std::unique_lock lock(done->mutex);
    done->changed.wait_for(lock, std::chrono::seconds(2), [&] { return done->yes; });
  }

  DebugConfig config_;
  HangPoint hang_;
  double tick_s_ = 1;
  bool parked_ = false;
  std::atomic<int64_t> step_{-1};
  std::map<void*, void (*)(void*)> hooks_;
  bool stop_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  WatchWindow window_;
  std::thread thread_;
};

std::unique_ptr<Watchdog>& watchdog() {
  static std::unique_ptr<Watchdog> one;
  return one;
}

int depth = 0;  // of calls inside calls; collectives are called by one thread

}  // namespace

std::string step_text(int64_t step) {
  return step < 0 ? "set-up" : fmt::format("step {}", step);
}

void start_watchdog(const DebugConfig& config) {
  stop_watchdog();
  if (!(config.watchdog_s >= 0))
    fail_agreed(ExitCode::usage,
                fmt::format("debug.watchdog_s {} must be 0 (off) or more", config.watchdog_s));
  const int ranks = launched_ranks();
  if (config.hang_rank < -1 || config.hang_rank >= ranks)
    fail_agreed(ExitCode::usage, fmt::format("debug.hang_rank {}: there are ranks 0 to {}",
                                             config.hang_rank, ranks - 1));
  watchdog() = std::make_unique<Watchdog>(config);
}

void stop_watchdog() {
  if (watchdog() == nullptr) return;
  watchdog()->leave_together();
  watchdog().reset();
}

void set_watchdog_step(int64_t step) {
  if (watchdog() != nullptr) watchdog()->set_step(step);
}

void enter_call(const WatchedCall& call) {
  if (depth++ == 0 && watchdog() != nullptr) watchdog()->enter(call);
}

void leave_call() {
  if (--depth == 0 && watchdog() != nullptr) watchdog()->leave();
}

void announce_communicator(uint64_t communicator) {
  if (watchdog() != nullptr) watchdog()->announce(communicator);
}

void forget_communicator(uint64_t communicator) {
  if (watchdog() != nullptr) watchdog()->forget(communicator);
}

bool first_to_speak() {
  return watchdog() == nullptr || watchdog()->first_to_speak();
}

bool checking_collectives() {
  return depth == 1 && watchdog() != nullptr && watchdog()->config().check_collectives;
}

void add_abort_hook(void* owner, void (*hook)(void*)) {
  if (watchdog() != nullptr) watchdog()->add_hook(owner, hook);
}

void remove_abort_hook(void* owner) {
  if (watchdog() != nullptr) watchdog()->remove_hook(owner);
}

}  // namespace megadict
