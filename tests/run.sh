#!/bin/bash
# Sets this machine up, builds, and runs every test; the last line is the count of all of them.
#
#   tests/run.sh           everything
#   tests/run.sh --quick   leaves out tests labelled slow and those of more than two ranks
#
# Results lie in build/results/. MEGADICT_HOME is the folder that clones share (README.md).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# shellcheck source=tools/progress.sh
source tools/progress.sh

leave_out='^$' marks=''
case ${1-} in
  '') ;;
  --quick) leave_out='^(slow|n[3-9]|n[1-9][0-9]+)$' marks='not slow' ;;
  -h | --help)
    sed -n '2,/^set/{/^#/!d;s/^# \{0,1\}//p}' "$0"
    exit 0
    ;;
  *)
    printf 'run.sh: unknown option %s; there are --quick, --help\n' "$1" >&2
    exit 2
    ;;
esac

results=$PWD/build/results
rm -rf "$results"
mkdir -p "$results"
: >"$results/run.tsv"
tools/bootstrap.sh --tests || exit 1
use_shared_ccache

watched "configure" "$results/build.log" cmake --preset release || exit
watched "build" "$results/build.log" cmake --build --preset release || exit

say "C++ tests:"
run_ctest release "$results/ctest.xml" -LE "$leave_out"
say "Python tests:"
"$MEGADICT_HOME/venv/bin/python" -m pytest tests/py -q -m "$marks" --junitxml="$results/pytest.xml" </dev/null
status=$?  # 1 = tests failed, which the XML tells; above it pytest itself failed or found nothing
[ "$status" -le 1 ] || printf 'failed\tpytest\texit code %s\n' "$status" >>"$results/run.tsv"

"$MEGADICT_HOME/venv/bin/python" tests/support/count_results.py "$results"/{ctest.xml,pytest.xml,run.tsv}
