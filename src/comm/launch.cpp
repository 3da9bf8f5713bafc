#include "comm/launch.h"

#include <fmt/format.h>
#include <mpi.h>
#include <sched.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <thread>

#include "base/log.h"
#include "comm/backends.h"
#include "comm/call_watch.h"
#include "comm/launch_env.h"
#include "comm/watchdog.h"

namespace megadict {

namespace {

int my_rank = 0, my_ranks = 1;
const std::thread::id kMainThread = std::this_thread::get_id();

std::string short_host_name() {
  char name[256] = "";
  gethostname(name, sizeof(name) - 1);
  const std::string full = name;
  return full.substr(0, full.find('.'));
}

cpu_set_t affinity_mask() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof(mask), &mask) != 0) {
    // More processors than cpu_set_t has bits: all that are online.
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    for (long cpu = 0; cpu < online && cpu < CPU_SETSIZE; ++cpu) CPU_SET(cpu, &mask);
  }
  return mask;
}

void initialise_mpi(int* argc, char*** argv) {
  prepare_mpi_alone();
  int provided = 0;
  MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided);
  if (provided < MPI_THREAD_FUNNELED)
    fail_agreed(ExitCode::comm, "this MPI offers no MPI_THREAD_FUNNELED");
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
}

// Ranks of this node whose affinity masks overlap with this one's, itself included.
int count_sharers(MPI_Comm node, int local_ranks) {
  const cpu_set_t mine = affinity_mask();
  std::vector<cpu_set_t> masks(static_cast<size_t>(local_ranks));
  MPI_Allgather(&mine, sizeof(mine), MPI_BYTE, masks.data(), sizeof(mine), MPI_BYTE, node);
  int sharers = 0;
  for (const cpu_set_t& other : masks) {
    cpu_set_t both;
    CPU_AND(&both, &mine, &other);
    if (CPU_COUNT(&both) > 0) ++sharers;
  }
  return sharers;
}

void ask_mpi(LaunchFacts& facts) {
  MPI_Comm_rank(MPI_COMM_WORLD, &facts.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &facts.ranks);
  MPI_Comm node = MPI_COMM_NULL;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, facts.rank, MPI_INFO_NULL, &node);
  MPI_Comm_rank(node, &facts.local_rank);
  MPI_Comm_size(node, &facts.local_ranks);
  // Nodes are numbered in the order of their first ranks.
  const int first = facts.local_rank == 0;
  MPI_Allreduce(&first, &facts.nodes, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  MPI_Scan(&first, &facts.node, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  facts.node -= 1;
  MPI_Bcast(&facts.node, 1, MPI_INT, 0, node);
  facts.cpu_sharers = count_sharers(node, facts.local_ranks);
  MPI_Allreduce(&facts.cpus, &facts.cpus_least, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
  MPI_Comm_free(&node);
}

}  // namespace

bool mpi_running() {
  int initialized = 0, finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized != 0 && finalized == 0;
}

int launched_ranks() {
  return my_ranks;
}

Launch::Launch(int* argc, char*** argv) : exceptions_(std::uncaught_exceptions()) {
  facts_.host = short_host_name();
  facts_.launcher = launcher_name();
  facts_.settings = launch_settings();
  const cpu_set_t mask = affinity_mask();
  facts_.cpus = facts_.cpus_least = CPU_COUNT(&mask);
  guard_against_blind_srun(0);
  if (launcher_present()) {
    initialise_mpi(argc, argv);
    ask_mpi(facts_);
    guard_against_blind_srun(facts_.ranks);
  }
  my_rank = facts_.rank;
  my_ranks = facts_.ranks;
  log_identity(facts_.rank, facts_.ranks, facts_.host);
  world_ = facts_.ranks > 1 ? make_mpi_world() : make_self_communicator("world");
}

Launch::Launch(Launch& whole, int color)
    : facts_(whole.facts_), is_part_(true), exceptions_(std::uncaught_exceptions()) {
  world_ = whole.world().split(color, whole.facts_.rank, "world");
  facts_.rank = world_->rank();
  facts_.ranks = world_->size();
  if (facts_.ranks > 1) return;
  world_.reset();
  world_ = make_self_communicator("world")->split(color, 0, "world");
}

Launch::~Launch() {
  if (is_part_ || std::uncaught_exceptions() > exceptions_) return;
  stop_watchdog();
  device_world_.reset();
  world_.reset();
  if (mpi_running()) MPI_Finalize();
}

Communicator& Launch::world_for(Device device) {
  if (device == Device::cpu) return *world_;
  if (device_world_ == nullptr) device_world_ = make_device_world(*world_, facts_);
  return *device_world_;
}

void abort_all(ExitCode code) {
  std::fflush(stdout);
  if (mpi_running()) {
    if (my_ranks == 1 && std::this_thread::get_id() == kMainThread) {
      MPI_Finalize();  // leaves quietly, where MPI_Abort makes the launcher print a page
    } else {
      MPI_Abort(MPI_COMM_WORLD, static_cast<int>(code));
    }
  }
  std::_Exit(static_cast<int>(code));
}

void abort_with(const Error& error) {
  // From here on the launcher's TERM ends this rank, also out of its sleep.
  std::signal(SIGTERM, SIG_DFL);
  // One rank speaks for all that fail alike; an abort of another would end it before its line is
  // out. For an error that all meet that is rank 0: who is still there after a while was alone.
  if (error.agreed() && my_rank != 0) sleep(6);
  if (first_to_speak())
    print_error(error.line(), !error.agreed() || my_rank != 0);
  else
    sleep(4);
  abort_all(error.code());
}

int resolve_threads(int asked, const LaunchFacts& facts) {
  if (asked < 0)
    fail_agreed(ExitCode::usage, fmt::format("run.threads {} must be 0 (auto) or more", asked));
  if (asked > facts.cpus_least && facts.rank == 0)
    warn(
        fmt::format("run.threads {}: a rank may use {} processor{} only. hint: mpirun --bind-to "
                    "none, srun --cpus-per-task={}",
                    asked, facts.cpus_least, facts.cpus_least == 1 ? "" : "s", asked));
  if (asked > 0) return asked;
  const int wanted = std::atoi(environment("OMP_NUM_THREADS").c_str());
  return wanted > 0 ? wanted : std::max(1, facts.cpus / facts.cpu_sharers);
}

}  // namespace megadict
