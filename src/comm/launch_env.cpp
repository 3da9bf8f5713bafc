// The only file that reads the environment.
#include "comm/launch_env.h"

#include <fmt/format.h>
#include <mpi.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "base/log.h"
#include "comm/launch.h"

namespace megadict {

namespace {

// Set by a launcher in every process it starts.
constexpr const char* kLauncherMarks[] = {
    "OMPI_COMM_WORLD_SIZE",  // mpirun of Open MPI
    "PMIX_RANK",             // srun --mpi=pmix, prterun
    "PMI_RANK",              // MPICH, Intel MPI, srun --mpi=pmi2 (and the next three)
    "PMI_SIZE",
    "PMI_FD",
    "PMI_PORT",
    "MPI_LOCALNRANKS",      // mpiexec of MPICH
    "MV2_COMM_WORLD_SIZE",  // MVAPICH
    "PALS_RANKID",          // Cray (and the next)
    "ALPS_APP_PE",
    "FLUX_TASK_RANK",        // flux run
    "JSM_NAMESPACE_SIZE",    // jsrun
    "SLURM_STEP_NUM_TASKS",  // srun
};

// What may change how a run behaves; printed and saved with it.
constexpr const char* kSettings[] = {
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "NCCL_DEBUG",
    "NCCL_SOCKET_IFNAME",
    "NCCL_IB_HCA",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "UCX_NET_DEVICES",
    "UCX_TLS",
    "OMPI_MCA_btl",
    "OMPI_MCA_mpi_yield_when_idle",
    "HDF5_USE_FILE_LOCKING",
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_STEP_ID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_CPUS_PER_TASK",
    "SLURM_RESTART_COUNT",
    "MEGADICT_MPI",
    "MEGADICT_HOME",
    "MEGADICT_MNIST",
};

bool is_set(const char* name) {
  return std::getenv(name) != nullptr;
}

// Open MPI takes PMIx; for SLURM's older PMI it has to be built so, which nobody can ask it before
// MPI_Init ends the process.
bool speaks_pmi() {
  char version[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(version, &length);
  return !std::string_view(version).starts_with("Open MPI") || environment("MEGADICT_MPI") == "1";
}

// Task 0 says it for all. Its exit makes srun -K send TERM to the others, which would turn the
// job's code into 143: they ignore it, and task 0 leaves after they have had time to.
[[noreturn]] void refuse_step(int tasks, const std::string& what, const std::string& hint) {
  const int task = std::atoi(environment("SLURM_PROCID").c_str());
  log_identity(task, tasks, "");
  std::signal(SIGTERM, SIG_IGN);
  sleep(task == 0 ? 1 : 2);
  if (task != 0) std::_Exit(static_cast<int>(ExitCode::usage));
  fail_agreed(ExitCode::usage, what, hint);
}

}  // namespace

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool launcher_present() {
  for (const char* mark : kLauncherMarks)
    if (is_set(mark)) return true;
  return environment("MEGADICT_MPI") == "1";
}

std::string launcher_name() {
  if (is_set("OMPI_COMM_WORLD_SIZE") || is_set("MPI_LOCALNRANKS")) return "mpirun";
  if (is_set("SLURM_STEP_NUM_TASKS")) return "srun";
  return launcher_present() ? "mpirun" : "none";
}

std::vector<std::string> launch_settings() {
  std::vector<std::string> settings;
  for (const char* name : kSettings)
    if (is_set(name)) settings.push_back(fmt::format("{}={}", name, environment(name)));
  return settings;
}

void guard_against_blind_srun(int ranks) {
  if (launcher_name() != "srun" || ranks > 1) return;
  const int tasks = std::atoi(environment("SLURM_STEP_NUM_TASKS").c_str());
  const bool pmix = is_set("PMIX_RANK"), pmi = is_set("PMI_RANK") || is_set("PMI_FD");
  if (ranks == 0 && pmi && !pmix && !speaks_pmi())
    refuse_step(tasks, "srun --mpi=pmi2 does not start Open MPI",
                "srun --mpi=pmix; where Open MPI was built with PMI, MEGADICT_MPI=1 tries it");
  if (tasks <= 1 || (ranks == 0 && (pmix || pmi))) return;
  refuse_step(tasks, fmt::format("srun started {} tasks but MPI sees 1", tasks), "srun --mpi=pmix");
}

void prepare_mpi_alone() {
  if (!is_set("OMPI_COMM_WORLD_SIZE") && !is_set("PMIX_RANK"))
    setenv("OMPI_MCA_ess_singleton_isolated", "1", 0);
}

}  // namespace megadict
