#!/bin/bash
# A SLURM cluster of two "nodes" on this machine, to try the launch scripts before they meet a real
# one. Real slurmctld and slurmd from Debian's packages (tools/bootstrap.sh --tests), run as the
# user who calls, in a folder of its own; nothing of the system's configuration is touched.
#
#   launch/sandbox.sh start             nodes n1 and n2, 4 processors each, whatever there is
#   launch/sandbox.sh run COMMAND ...   with that cluster: sinfo, squeue, srun, sbatch, ...
#   launch/sandbox.sh status
#   launch/sandbox.sh stop              ends its jobs and daemons, removes its folder
#
#   launch/sandbox.sh run srun --mpi=pmix -N2 --ntasks-per-node=2 build/release/bin/megadict info
#
# SANDBOX_DIR is its folder (default $MEGADICT_HOME/sandbox), SANDBOX_PORT the first of three
# ports on 127.0.0.1 (default 26817): two sandboxes at once need two of each.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=tools/progress.sh
source "$root/tools/progress.sh"

folder=${SANDBOX_DIR:-$MEGADICT_HOME/sandbox}
port=${SANDBOX_PORT:-26817}
export SLURM_CONF=$folder/slurm.conf
PATH=$PATH:/usr/sbin

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

idle_nodes() { sinfo -h -N -t idle -o %N 2>/dev/null | wc -l; }

# The processes that the pid files name and that still live.
living() {
  local file pid
  for file in "$folder"/*.pid; do
    [ -e "$file" ] || continue
    pid=$(cat "$file")
    [ -z "$pid" ] || ! kill -0 "$pid" 2>/dev/null || printf '%s\n' "$pid"
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

both_idle() { [ "$(idle_nodes)" -eq 2 ]; }
none_living() { [ -z "$(living)" ]; }
no_job() { [ -z "$(squeue -h 2>/dev/null)" ]; }

start() {
  local tool
  for tool in slurmctld slurmd srun sinfo; do
    command -v "$tool" >/dev/null || die "$tool is not installed" "tools/bootstrap.sh --tests"
  done
  # PMIx puts sockets there, whose paths may have 107 characters.
  [ "${#folder}" -le 60 ] || die "the folder name '$folder' is too long" "SANDBOX_DIR of at most 60 characters"
  if [ -n "$(living)" ]; then
    die "a sandbox already runs in $folder" "$0 stop, or another SANDBOX_DIR and SANDBOX_PORT"
  fi
  mkdir -p "$folder"/{state,log,spool-n1,spool-n2,tmp-n1,tmp-n2}
  write_configuration
  slurmctld -c
  slurmd -N n1
  slurmd -N n2
  if ! wait_until 60 both_idle; then
    tail -n 5 "$folder"/log/*.log >&2
    stop_daemons
    die "the nodes did not come up in 60 s; the ends of their logs stand above" \
      "is port $port, $((port + 1)) or $((port + 2)) taken? set SANDBOX_PORT"
  fi
  say "sandbox up: nodes n1 and n2 in $folder. next: $0 run srun --mpi=pmix -N2 hostname"
}

stop_daemons() {
  local pid
  for pid in $(living); do kill "$pid" || true; done
  wait_until 20 none_living || for pid in $(living); do kill -KILL "$pid" || true; done
}

stop() {
  if [ -z "$(living)" ]; then
    say "no sandbox runs in $folder"
  else
    scancel -u "$(id -un)" 2>/dev/null || true
    if ! wait_until 10 no_job; then
      scancel --signal=KILL -u "$(id -un)" 2>/dev/null || true
      wait_until 30 no_job || say "jobs were left: $(squeue -h -o '%i %j %T' | tr '\n' ';')"
    fi
    stop_daemons
    say "sandbox stopped"
  fi
  # Only a folder that a sandbox made.
  [ ! -e "$SLURM_CONF" ] || rm -rf "$folder"
}

run() {
  [ $# -gt 0 ] || die "run what?" "$0 run sinfo"
  [ -n "$(living)" ] || die "no sandbox runs in $folder" "$0 start"
  # Both nodes are this machine: Open MPI would otherwise take them for one shared memory.
  export OMPI_MCA_btl=tcp,self OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_pml=ob1
  export OMPI_MCA_mpi_yield_when_idle=1
  # The tree kind of fence releases a node too early (see train.sbatch).
  export SLURM_PMIX_FENCE=ring
  exec "$@"
}

case ${1-} in
  start) start ;;
  stop) stop ;;
  run) shift && run "$@" ;;
  status)
    [ -n "$(living)" ] || die "no sandbox runs in $folder"
    sinfo -N && squeue
    ;;
  -h | --help) sed -n '2,/^set/{/^#/!d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" ;;
  *)
    printf 'sandbox.sh: start, stop, status or run COMMAND, not "%s"; --help tells more\n' "${1-}" >&2
    exit 2
    ;;
esac
