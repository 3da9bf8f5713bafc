#!/bin/bash
# Measures how training scales on this machine or cluster: short runs in three series,
#
#   strong   the same dictionary and batch on more ranks             (mesh 1 x P)
#   weak-n   latents grow with the ranks, the batch stays            (mesh 1 x P)
#   weak-B   the batch grows with the ranks, the dictionary stays    (mesh P x 1)
#
# each beside what `megadict plan` says of it. Points that are there already are left alone. At the
# end, and whenever you like: tools/scaling.py OUT prints the table and draws OUT/scaling.svg.
#
#   launch/scaling.sh --config configs/topk_gpt2_small.ini --data acts --out scaling --ranks 1,2,4,8
#   launch/scaling.sh ... --launch sbatch --ranks_per_node 8 --sbatch "--partition=long --cpus-per-task=8"
#
#   --config FILE         settings of every run
#   --data DIR            activation shards; runs are not evaluated
#   --out DIR             where points and runs go
#   --ranks LIST          1,2,4 (default)
#   --steps N             of each run (50); the first fifth is not timed
#   --launch HOW          mpirun (default) or sbatch: one job a point, one after the other
#   --ranks_per_node R    with sbatch (default: all on one node)
#   --sbatch "WORDS"      more for sbatch
#   --mpirun "WORDS"      more for mpirun, such as "--hostfile hosts --map-by ppr:8:node"
#   --machine FILE        of `megadict bench machine`: the planner then says times, too
#   -- --name value ...   more settings for every run, of which latents and batch are the first point's
#
# MEGADICT_BIN names the program.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

refuse() {
  printf 'scaling.sh: %s%s\n' "$1" "${2:+. hint: $2}" >&2
  exit 2
}

config='' data='' out='' ranks=1,2,4 steps=50 how=mpirun per_node='' sbatch_words='' mpirun_words='' machine=''
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      sed -n '2,/^set/{/^#/!d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --) shift && break ;;
    --config | --data | --out | --ranks | --steps | --launch | --ranks_per_node | --sbatch | --mpirun | --machine)
      [ $# -gt 1 ] || refuse "$1 needs a value" "scaling.sh --help"
      case $1 in
        --config) config=$2 ;;
        --data) data=$2 ;;
        --out) out=$2 ;;
        --ranks) ranks=$2 ;;
        --steps) steps=$2 ;;
        --launch) how=$2 ;;
        --ranks_per_node) per_node=$2 ;;
        --sbatch) sbatch_words=$2 ;;
        --mpirun) mpirun_words=$2 ;;
        --machine) machine=$2 ;;
      esac
      shift 2
      ;;
    *) refuse "unknown option $1" "scaling.sh --help; settings of the runs come after --" ;;
  esac
done

more=() sizes=()
while [ $# -gt 0 ]; do
  [ $# -gt 1 ] || refuse "$1 needs a value"
  case $1 in
    --model.n_latents | --data.batch_size) sizes+=("$1" "$2") ;;
    --data.path | --data.tokens | --mesh.data | --mesh.feature | --run.dir) refuse "$1 is set by the series" ;;
    *) more+=("$1" "$2") ;;
  esac
  shift 2
done

[ -f "$config" ] || refuse "--config '$config' is no file"
[ -d "$data" ] || refuse "--data '$data' is no folder"
[ -n "$out" ] || refuse "--out is missing" "a folder for points and runs"
[[ $ranks =~ ^[1-9][0-9]*(,[1-9][0-9]*)*$ ]] || refuse "--ranks '$ranks'" "such as 1,2,4"
[[ $steps =~ ^[1-9][0-9]*$ && $steps -ge 10 ]] || refuse "--steps '$steps'" "10 or more"
[[ -z $per_node || $per_node =~ ^[1-9][0-9]*$ ]] || refuse "--ranks_per_node '$per_node'" "1 or more"
[ -z "$machine" ] || [ -f "$machine" ] || refuse "--machine '$machine' is no file" "megadict bench machine"
case $how in
  mpirun | sbatch) command -v "$how" >/dev/null || refuse "--launch $how: there is no $how here" ;;
  *) refuse "--launch '$how'" "mpirun or sbatch" ;;
esac
for p in ${ranks//,/ }; do
  [ -z "$per_node" ] || [ "$p" -le "$per_node" ] || [ $((p % per_node)) -eq 0 ] ||
    refuse "$p ranks do not fill nodes of $per_node" "--ranks with multiples of --ranks_per_node"
done
megadict=${MEGADICT_BIN:-$(command -v megadict || echo "$root/build/release/bin/megadict")}
[ -x "$megadict" ] || refuse "no program '$megadict'" "build it, or set MEGADICT_BIN"
export MEGADICT_BIN=$megadict
mkdir -p "$out"
config=$(realpath "$config") data=$(realpath "$data") out=$(realpath "$out")
[ -z "$machine" ] || machine=$(realpath "$machine")

# A pattern has no eval/ beside it: nothing is evaluated, and what is counted are steps.
settings=(--data.path "$data/*.h5" --dead.auxk_alpha 0 --checkpoint.every_minutes 0 --log.every_steps 1 "${more[@]}")

# plan FILE RANKS [--name value ...]: what the planner says, for FILE also in numbers.
plan() {
  local file=$1 p=$2
  shift 2
  "$megadict" plan --config "$config" "${settings[@]}" --ranks "$p" --json "$file" \
    ${machine:+--machine "$machine"} ${per_node:+--ranks_per_node "$per_node"} "$@" >/dev/null
}

# number NAME FILE: a whole number of a plan.
number() { sed -n "s/^ *\"$1\": \([0-9]*\),\{0,1\}$/\1/p" "$2" | head -n 1; }

# start FOLDER RANKS --name value ...
start() {
  local folder=$1 p=$2 nodes=1 tasks=$2 code=0
  shift 2
  if [ "$how" = mpirun ]; then
    # shellcheck disable=SC2086
    mpirun -n "$p" --bind-to none $mpirun_words "$megadict" train --config "$config" --run.dir "$folder/run" \
      --run.resume auto "${settings[@]}" "$@" >"$folder/log" 2>&1 </dev/null || code=$?
    [ "$code" -eq 0 ] && return
    tail -n 3 "$folder/log" >&2
    echo "scaling.sh: the run in $folder ended with exit code $code" >&2
    exit "$code"
  fi
  if [ -n "$per_node" ] && [ "$p" -gt "$per_node" ]; then nodes=$((p / per_node)) tasks=$per_node; fi
  # One at a time, or they would disturb each other.
  # shellcheck disable=SC2086
  RUN_DIR=$folder/run sbatch --parsable --job-name="megadict-scaling" --dependency=singleton --chdir="$root" \
    --nodes="$nodes" --ntasks-per-node="$tasks" --output="$folder/log" $sbatch_words \
    "$root/launch/train.sbatch" "$config" "${settings[@]}" "$@" >"$folder/job"
}

# Whether the point is done, or its job still waits or runs.
is_there() {
  [ ! -e "$1/run/final" ] || return 0
  [ "$how" = sbatch ] && [ -s "$1/job" ] && [ -n "$(squeue -h -j "$(cat "$1/job")" 2>/dev/null)" ]
}

plan "$out/base.json" 1 "${sizes[@]}"
n=$(number n_latents "$out/base.json") b=$(number batch_size "$out/base.json")
printf 'series\tranks\tfolder\n' >"$out/points.tsv"
for p in ${ranks//,/ }; do
  for series in strong weak-n weak-B; do
    case $series in
      strong) point_n=$n point_b=$b mesh="1 $p" ;;
      weak-n) point_n=$((n * p)) point_b=$b mesh="1 $p" ;;
      weak-B) point_n=$n point_b=$((b * p)) mesh="$p 1" ;;
    esac
    # One rank is the first point of every series: run once.
    name=n$point_n-b$point_b-${mesh/ /x}
    printf '%s\t%s\t%s\n' "$series" "$p" "$name" >>"$out/points.tsv"
    folder=$out/$name
    ! is_there "$folder" || continue
    mkdir -p "$folder"
    words=(--mesh.data "${mesh% *}" --mesh.feature "${mesh#* }" --model.n_latents "$point_n"
      --data.batch_size "$point_b" --data.tokens $((point_b * steps)))
    plan "$folder/plan.json" "$p" "${words[@]}"
    echo "$series, $p rank(s): $name"
    start "$folder" "$p" "${words[@]}"
  done
done
if [ "$how" = sbatch ]; then
  echo "submitted; when they are done: $root/tools/scaling.py $out"
else
  exec "$root/tools/scaling.py" "$out"
fi
