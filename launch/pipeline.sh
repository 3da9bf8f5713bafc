#!/bin/bash
# From text to a dictionary that another tool loads, as SLURM jobs that wait for each other:
# harvest (an array) -> train (requeues itself) -> eval -> export. A job that fails cancels those
# behind it; the same command again goes on with what is missing.
#
#   launch/pipeline.sh --out gpt2 --config configs/topk_gpt2_small.ini --slices 16 \
#     --harvest "--model gpt2-folder --layer 8 --text pile.parquet" --train_sbatch "--nodes=2"
#
#   --out DIR               DIR/acts, DIR/run, DIR/eval.json, DIR/FORMAT, DIR/log
#   --config FILE           settings of the training
#   --harvest "WORDS"       for tools/harvest.py, without --out and --slice; one layer and site
#   --train "WORDS"         more settings of the training
#   --slices N              elements of the harvest's array (1)
#   --format NAME           of the export (saelens)
#   --sbatch "WORDS"        for sbatch, all jobs: --partition=..., --account=...
#   --harvest_sbatch, --train_sbatch "WORDS"   for these jobs; command line outranks the scripts
#
# WORDS are cut at spaces. MEGADICT_BIN names the program.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

refuse() {
  printf 'pipeline.sh: %s%s\n' "$1" "${2:+. hint: $2}" >&2
  exit 2
}

out='' config='' harvest='' train='' slices=1 format=saelens all_sbatch='' harvest_sbatch='' train_sbatch=''
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      sed -n '2,/^set/{/^#/!d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --out | --config | --harvest | --train | --slices | --format | --sbatch | --harvest_sbatch | --train_sbatch)
      [ $# -gt 1 ] || refuse "$1 needs a value" "pipeline.sh --help"
      case $1 in
        --out) out=$2 ;;
        --config) config=$2 ;;
        --harvest) harvest=$2 ;;
        --train) train=$2 ;;
        --slices) slices=$2 ;;
        --format) format=$2 ;;
        --sbatch) all_sbatch=$2 ;;
        --harvest_sbatch) harvest_sbatch=$2 ;;
        --train_sbatch) train_sbatch=$2 ;;
      esac
      shift 2
      ;;
    *) refuse "unknown option $1" "pipeline.sh --help" ;;
  esac
done

[ -n "$out" ] || refuse "--out is missing" "a folder for everything"
[ -f "$config" ] || refuse "--config '$config' is no file"
[ -n "$harvest" ] || refuse "--harvest is missing" "the words of tools/harvest.py"
case " $harvest " in *" --out "* | *" --slice "*) refuse "--harvest with --out or --slice" "--out and --slices of this script" ;; esac
[[ $slices =~ ^[1-9][0-9]*$ ]] || refuse "--slices '$slices'" "1 or more"
command -v sbatch >/dev/null || refuse "there is no sbatch here"
megadict=${MEGADICT_BIN:-$(command -v megadict || echo "$root/build/release/bin/megadict")}
[ -x "$megadict" ] || refuse "no program '$megadict'" "build it, or set MEGADICT_BIN"
[[ " $("$megadict" export --help | tr -c 'a-z_\n' ' ' | tr '\n' ' ') " == *" $format "* ]] || refuse "--format '$format'" "megadict export --help"
mkdir -p "$out/log"
out=$(realpath "$out") config=$(realpath "$config")
export MEGADICT_BIN=$megadict MEGADICT_ROOT=$root RUN_DIR=$out/run

# submit NAME WORDS-FOR-SBATCH SCRIPT ARGUMENT...: prints the job's number. Waits for $after.
after=''
submit() {
  local name=$1 words=$2 script=$3
  shift 3
  # shellcheck disable=SC2086
  sbatch --parsable --job-name="megadict-$name" --output="$out/log/$name-%j.out" --kill-on-invalid-dep=yes \
    ${after:+--dependency=afterok:$after} $all_sbatch $words "$script" "$@"
}

# shellcheck disable=SC2086
{
  after=$(submit harvest "--array=0-$((slices - 1)) $harvest_sbatch" "$root/launch/harvest.sbatch" \
    $harvest --out "$out/acts")
  echo "harvest $after ($slices slices)"
  after=$(submit train "$train_sbatch" "$root/launch/train.sbatch" "$config" --data.path "$out/acts" $train)
  echo "train $after"
}
trained=$after
after=$(submit eval "" "$root/launch/command.sbatch" eval --run.dir "$out/run" --data.path "$out/acts" \
  --json "$out/eval.json")
echo "eval $after"
if [ -e "$out/$format" ]; then
  echo "export: $out/$format is there"
else
  after=$trained
  echo "export $(submit export "" "$root/launch/command.sbatch" export --run.dir "$out/run" --format "$format" \
    --out "$out/$format")"
fi
