#!/bin/bash
# From a bare machine to a first dictionary of a real language model: installs what is missing,
# builds, takes the activations of SmolLM2-135M after block 9, trains 9216 latents on them,
# judges the dictionary on held-out text, writes it for SAELens, puts it into the language model to
# see what its loss becomes, and writes a report.
#
#   launch/quickstart.sh                     about eight minutes on two cores
#   launch/quickstart.sh --out DIR           where everything goes (./quickstart-run)
#   launch/quickstart.sh --device cuda       train on this machine's GPUs
#
# For a shorter try: --rows N harvests N rows only, --tokens N trains on N rows (visits).
# What is done already is not done again: call it once more after an interruption.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=tools/progress.sh
source "$root/tools/progress.sh"

out=./quickstart-run device=cpu rows="" tokens=""
usage_error() {
  printf 'quickstart.sh: %s; --help tells more\n' "$1" >&2
  exit 2
}
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      sed -n '2,/^set/{/^#/!d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --out | --device | --rows | --tokens)
      [ $# -ge 2 ] || usage_error "$1 needs a value"
      case $1=$2 in
        --out=*) out=$2 ;;
        --device=cpu | --device=cuda) device=$2 ;;
        --rows=*[!0-9]* | --tokens=*[!0-9]* | --rows= | --tokens=) usage_error "$1 '$2' is not a number" ;;
        --rows=*) rows=$2 ;;
        --tokens=*) tokens=$2 ;;
        *) usage_error "$1 '$2': it is cpu or cuda" ;;
      esac
      shift 2
      ;;
    *) usage_error "unknown option '$1'; there are --out, --device, --rows, --tokens" ;;
  esac
done

preset=release
[ "$device" = cpu ] || preset=cuda
mkdir -p "$out" 2>/dev/null || die "cannot make the folder '$out'"
out=$(cd "$out" && pwd)
exec 9>"$out/.lock" || die "cannot write into '$out'"
flock -n 9 || die "another quickstart works in '$out'" "wait for it, or give another --out"
data=$out/activations run=$out/run
megadict=$root/build/$preset/bin/megadict
python=$MEGADICT_HOME/venv/bin/python
stages=7 interrupted=0
loss_tokens=768  # held-out tokens: less than a minute; tools/loss_recovered.py takes 16384 by itself
trap 'interrupted=1' INT TERM

# ---- stages ------------------------------------------------------------------------------------

# 130 after Ctrl-C, 143 after TERM; mpirun turns either into 1.
stopped() {
  local again="call this again: it goes on from here"
  if [ "$interrupted" -eq 1 ] || [ "$2" -eq 130 ] || [ "$2" -eq 143 ]; then
    die "interrupted in the stage '$1'" "$again"
  fi
  die "the stage '$1' failed with exit code $2" "mend it and $again"
}

# stage NUMBER NAME TEXT COMMAND...: runs it, notes its seconds in $out/stages.tsv.
stage() {
  local number=$1 name=$2 text=$3 start=$SECONDS
  shift 3
  printf '\n[%s/%s] %s\n' "$number" "$stages" "$text"
  "$@" || stopped "$name" $?
  printf '%s\t%s\n' "$name" $((SECONDS - start)) >>"$out/stages.tsv"
}

# done_already NUMBER FILE TEXT: says so and succeeds when FILE is there.
done_already() {
  [ -e "$2" ] || return 1
  printf '\n[%s/%s] there already: %s\n' "$1" "$stages" "$3"
}

build() {
  use_shared_ccache
  watched "configure" "$out/build.log" cmake -S "$root" --preset "$preset" &&
    watched "build (several minutes the first time)" "$out/build.log" \
      cmake --build "$root/build/$preset" --target megadict
}

harvest() {
  "$python" "$root/tools/harvest.py" --model smollm2 --layer 9 --site resid_post --out "$data" \
    --device "$device" ${rows:+--rows "$rows"}
}

# Two processes share the work on the CPU; on GPUs one process takes each.
launch() {
  local ranks=2 flags=()
  [ "$device" = cpu ] || ranks=$(nvidia-smi -L | grep -c '^GPU')
  if mpirun --version 2>/dev/null | grep -q 'Open MPI'; then
    flags=(--bind-to none --oversubscribe)
    [ "$(id -u)" -ne 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  fi
  mpirun -n "$ranks" "${flags[@]}" "$megadict" "$@"
}

train() {
  launch train --config "$root/configs/quickstart.ini" --data.path "$data" --run.dir "$run" \
    --run.resume auto --run.device "$device" ${tokens:+--data.tokens "$tokens"}
}

evaluate() {
  launch eval --run.dir "$run" --data.path "$data" --json "$out/eval.json" \
    --latents "$run/latents.h5" >"$out/eval.txt" &&
    "$python" "$root/tools/pca_yardstick.py" --data "$data" --k 32 --json "$out/pca.json"
}

# To a temporary name first: a folder that is there is complete.
export_saelens() {
  rm -rf "$out/saelens.part"
  "$megadict" export --run.dir "$run" --format saelens --out "$out/saelens.part" &&
    mv "$out/saelens.part" "$out/saelens"
}

# The report comes last: with it the stage is done.
report() {
  "$python" "$root/tools/loss_recovered.py" --model smollm2 --data "$data" --dictionary "$out/saelens" \
    --tokens "$loss_tokens" --json "$out/loss_recovered.json" >"$out/loss_recovered.txt" &&
    "$python" "$root/tools/report.py" "$run" --loss "$out/loss_recovered.json" \
      --model smollm2 --title "SmolLM2-135M, after block 9" --out "$out/report.html"
}

# ------------------------------------------------------------------------------------------------

say "Megadict quickstart: everything goes to $out"
stage 1 set-up "set up this machine (what is missing of Debian and Python packages)" "$root/tools/bootstrap.sh"
stage 2 build "build the program" build
stage 3 harvest "activations of SmolLM2-135M-Instruct, residual stream after block 9 (width 576)" harvest
done_already 4 "$run/final" "the trained dictionary in $run/final" ||
  stage 4 train "train 9216 latents, 32 active for each token, over two processes" train
done_already 5 "$out/pca.json" "the evaluation in $out/eval.json" ||
  stage 5 evaluate "judge it on held-out text, beside a rank-32 PCA of the same rows" evaluate
done_already 6 "$out/saelens" "the SAELens dictionary in $out/saelens" ||
  stage 6 export "write it for SAELens" export_saelens
done_already 7 "$out/report.html" "the report in $out/report.html" ||
  stage 7 report "put it into the language model ($loss_tokens held-out tokens), write the report" report
"$python" "$root/launch/quickstart_table.py" "$out" "$(realpath --relative-to=. "$megadict")" \
  "$(realpath --relative-to=. "$root/configs/quickstart.ini")"
