#!/bin/bash
# A SLURM cluster of two "nodes" on this machine, to try the launch scripts before they meet a real
# one. Real slurmctld and slurmd from Debian's packages, run as the user who calls, with all their
# state in one folder; nothing of the system's configuration is touched.
#
#   tools/slurm_sandbox.sh up                nodes n1 and n2, 4 processors each, whatever there is
#   tools/slurm_sandbox.sh run COMMAND ...   with that cluster: sinfo, squeue, srun, sbatch, ...
#   tools/slurm_sandbox.sh status
#   tools/slurm_sandbox.sh down              ends its jobs and daemons, removes its folder
#
#   tools/slurm_sandbox.sh run srun --mpi=pmix -N2 --ntasks-per-node=2 build/release/bin/megadict info
#
# What of the packages is missing, `up` installs where it may. SANDBOX_DIR is the folder (default
# $MEGADICT_HOME/sandbox); two sandboxes at once need two of them. The first of three ports on
# 127.0.0.1 is found, or SANDBOX_PORT.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=tools/progress.sh
source "$root/tools/progress.sh"

folder=${SANDBOX_DIR:-$MEGADICT_HOME/sandbox}
export SLURM_CONF=$folder/slurm.conf
PATH=$PATH:/usr/sbin

# ---- what it needs -----------------------------------------------------------------------------

missing_tools() {
  local tool
  for tool in slurmctld slurmd srun sinfo squeue scancel mpirun; do
    command -v "$tool" >/dev/null || printf '%s ' "$tool"
  done
}

need_tools() {
  local missing
  missing=$(missing_tools)
  [ -n "$missing" ] || return 0
  "$root/tools/bootstrap.sh" --sandbox || exit
  missing=$(missing_tools)
  [ -z "$missing" ] || die "not installed: ${missing% }" \
    "apt-get install --no-install-recommends slurmctld slurmd slurm-client openmpi-bin libopenmpi-dev"
}

# ---- ports -------------------------------------------------------------------------------------

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

taken() { answers "$1" || answers $(($1 + 1)) || answers $(($1 + 2)); }

# Sets `port`, the first of three that nobody listens on.
find_ports() {
  if [ -n "${SANDBOX_PORT-}" ]; then
    port=$SANDBOX_PORT
    [[ $port =~ ^[1-9][0-9]{3,4}$ && $port -le 65533 ]] || die "SANDBOX_PORT '$port' is none" "1024 to 65533"
    ! taken "$port" || die "port $port, $((port + 1)) or $((port + 2)) is taken" "another SANDBOX_PORT, or none"
    return
  fi
  for ((port = 26817; port < 32000; port += 3)); do
    taken "$port" || return 0
  done
  die "no three free ports in a row from 26817 to 32000" "SANDBOX_PORT"
}

# ---- the cluster -------------------------------------------------------------------------------

write_configuration() {
  local host user
  host=$(hostname -s)
  user=$(id -un)
  cat >"$SLURM_CONF" <<END
ClusterName=sandbox
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/none
CredType=cred/none
SlurmctldPidFile=$folder/ctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
# A folder for each node, or the two PMIx servers fight over one.
TmpFS=$folder/tmp-%n
SlurmctldLogFile=$folder/log/ctld.log
SlurmdLogFile=$folder/log/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=pmix
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=4 RealMemory=2000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
}

# The daemons' processes, by their pid files: what bears another name took over an old number.
living() {
  local file pid
  for file in "$folder"/*.pid; do
    [ -e "$file" ] || continue
    pid=$(cat "$file")
    case $(cat "/proc/${pid:-none}/comm" 2>/dev/null) in
      slurmctld | slurmd) printf '%s\n' "$pid" ;;
    esac
  done
}

# Every SLURM process of this sandbox, those of job steps included.
slurm_processes() {
  local entry
  for entry in /proc/[0-9]*; do
    case $(cat "$entry/comm" 2>/dev/null) in
      slurmctld | slurmd | slurmstepd | slurmscriptd)
        # A pid file may be gone while its process ends; the environment says whose it is.
        ! tr '\0' '\n' 2>/dev/null <"$entry/environ" | grep -qxF "SLURM_CONF=$SLURM_CONF" ||
          printf '%s\n' "${entry#/proc/}"
        ;;
    esac
  done
}

# wait_until SECONDS COMMAND...: polls; status 1 when the time is over.
wait_until() {
  local limit=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$limit" ] || return 1
    sleep 0.2
  done
}

both_idle() { [ "$(sinfo -h -N -t idle -o %N 2>/dev/null | wc -l)" -eq 2 ]; }
none_left() { [ -z "$(slurm_processes)" ]; }
no_job() { [ -z "$(squeue -h 2>/dev/null)" ]; }

up() {
  local port daemon
  need_tools
  # PMIx puts sockets there, whose paths may have 107 characters.
  [ "${#folder}" -le 60 ] || die "the folder name '$folder' is too long" "SANDBOX_DIR of at most 60 characters"
  if [ -n "$(living)" ]; then
    die "a sandbox already runs in $folder" "$0 down, or another SANDBOX_DIR"
  fi
  if [ -e "$folder" ] && [ ! -e "$SLURM_CONF" ] && [ -n "$(ls -A "$folder")" ]; then
    die "'$folder' holds other files" "another SANDBOX_DIR"
  fi
  # Two that start at once must not find the same ports free: one after the other.
  mkdir -p "$MEGADICT_HOME"
  exec 9>"$MEGADICT_HOME/sandbox.lock"
  flock 9
  find_ports
  mkdir -p "$folder"/{state,log,spool-n1,spool-n2,tmp-n1,tmp-n2}
  write_configuration
  for daemon in "slurmctld -c" "slurmd -N n1" "slurmd -N n2"; do
    $daemon 9>&- || { end_daemons && die "$daemon ended at once; it says why above"; }
  done
  if ! wait_until 120 both_idle; then
    tail -n 5 "$folder"/log/*.log >&2
    end_daemons
    die "the nodes did not come up in 120 s; the ends of their logs stand above"
  fi
  exec 9>&-
  say "sandbox up: nodes n1 and n2 in $folder, ports from $port. next: $0 run srun --mpi=pmix -N2 hostname"
}

end_daemons() {
  local pid
  for pid in $(slurm_processes); do kill "$pid" 2>/dev/null || true; done
  wait_until 30 none_left || for pid in $(slurm_processes); do kill -KILL "$pid" 2>/dev/null || true; done
  wait_until 10 none_left || die "processes of the sandbox live on: $(slurm_processes | tr '\n' ' ')"
}

down() {
  if none_left; then
    say "no sandbox runs in $folder"
  else
    scancel -u "$(id -un)" 2>/dev/null || true
    if ! wait_until 10 no_job; then
      scancel --signal=KILL -u "$(id -un)" 2>/dev/null || true
      wait_until 30 no_job || say "jobs were left: $(squeue -h -o '%i %j %T' | tr '\n' ';')"
    fi
    end_daemons
    say "sandbox down"
  fi
  # Only a folder that a sandbox made.
  [ ! -e "$SLURM_CONF" ] || rm -rf "$folder"
}

run() {
  [ $# -gt 0 ] || die "run what?" "$0 run sinfo"
  [ -n "$(living)" ] || die "no sandbox runs in $folder" "$0 up"
  # Both nodes are this machine: Open MPI would otherwise take them for one shared memory.
  export OMPI_MCA_btl=tcp,self OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_pml=ob1
  export OMPI_MCA_mpi_yield_when_idle=1
  # The tree kind of fence releases a node too early (see launch/train.sbatch).
  export SLURM_PMIX_FENCE=ring
  exec "$@"
}

case ${1-} in
  up) up ;;
  down) down ;;
  run) shift && run "$@" ;;
  status)
    [ -n "$(living)" ] || die "no sandbox runs in $folder" "$0 up"
    sinfo -N && squeue
    ;;
  -h | --help) sed -n '2,/^set/{/^#/!d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" ;;
  *)
    printf 'slurm_sandbox.sh: up, down, status or run COMMAND, not "%s"; --help tells more\n' "${1-}" >&2
    exit 2
    ;;
esac
