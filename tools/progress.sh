# shellcheck shell=bash
# Sourced by the set-up, test and quickstart scripts: stages with their times, long commands with
# a sign of life, and the folder that clones of this repository share.

MEGADICT_HOME=${MEGADICT_HOME:-${HOME:?HOME is not set; set HOME or MEGADICT_HOME}/.cache/megadict}
export MEGADICT_HOME

say() { printf '%s\n' "$*"; }

# die TEXT [HINT]: one line, exit 1.
die() {
  printf '%s: %s%s\n' "$(basename "$0")" "$1" "${2:+. hint: $2}" >&2
  exit 1
}

seconds_as_text() {
  if [ "$1" -lt 120 ]; then printf '%d s' "$1"; else printf '%d min %02d s' $(($1 / 60)) $(($1 % 60)); fi
}

# end_tree PID: ends the process and what it started.
end_tree() {
  local child
  for child in $(pgrep -P "$1"); do end_tree "$child"; done
  kill "$1" 2>/dev/null
}

# watched LABEL LOG COMMAND...: runs COMMAND with its output appended to LOG. Shows LABEL and the
# seconds so far (a line that renews itself on a terminal, else one line a half-minute), then the
# time it took. A failure prints the end of its output. Returns COMMAND's status, 130 after Ctrl-C
# and 143 after TERM; what the caller traps holds again afterwards.
watched() {
  local label=$1 log=$2 start=$SECONDS shown=0 from status=0 child callers signalled=0
  shift 2
  touch "$log"
  from=$(($(wc -l <"$log") + 1))
  [ -t 1 ] || say "$label ..."
  "$@" >>"$log" 2>&1 </dev/null &
  child=$!
  callers=$(trap -p INT TERM)
  # Background children of a script ignore the keyboard's interrupt: pass it on.
  trap 'signalled=130; end_tree "$child"' INT
  trap 'signalled=143; end_tree "$child"' TERM
  while kill -0 "$child" 2>/dev/null; do
    sleep 0.2
    if [ -t 1 ]; then
      printf '\r\033[K%s ... %s  %.70s' "$label" "$(seconds_as_text $((SECONDS - start)))" "$(last_line "$log")"
    elif [ $((SECONDS - start - shown)) -ge 30 ]; then
      shown=$((SECONDS - start))
      say "  ... $(seconds_as_text "$shown"): $(last_line "$log")"
    fi
  done
  wait "$child" || status=$?
  trap - INT TERM
  eval "$callers"
  [ ! -t 1 ] || printf '\r\033[K'
  if [ "$signalled" -ne 0 ]; then
    say "$label: interrupted after $(seconds_as_text $((SECONDS - start)))" >&2
    status=$signalled
  elif [ "$status" -eq 0 ]; then
    say "$label: done in $(seconds_as_text $((SECONDS - start)))"
  else
    tail -n "+$from" "$log" | tail -n 30 >&2
    say "$label: failed with exit code $status after $(seconds_as_text $((SECONDS - start))); all of its output: $log" >&2
  fi
  return "$status"
}

# The last line of a file that holds text, for display only.
last_line() {
  tail -n 5 "$1" | tr '\r' '\n' | tr -cd '[:print:]\n' | grep -v '^ *$' | tail -n 1 | cut -c 1-90
}

# A compiler cache that all clones share; what makes a clone in another folder hit it stands in
# CMakeLists.txt.
use_shared_ccache() {
  export CCACHE_DIR=${CCACHE_DIR:-$MEGADICT_HOME/ccache} CCACHE_MAXSIZE=${CCACHE_MAXSIZE:-10G}
}

# run_ctest PRESET XML [CTEST ARGUMENT...]: the tests of a built preset, results to XML.
run_ctest() {
  local preset=$1 xml=$2
  shift 2
  ctest --test-dir "build/$preset" --no-tests=error --output-on-failure --output-junit "$xml" \
    --test-output-size-passed 1000000 --test-output-size-failed 1000000 -j "$(nproc)" "$@" </dev/null
}
