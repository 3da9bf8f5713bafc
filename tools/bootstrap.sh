#!/bin/bash
# Installs what building and running Megadict needs and this machine lacks: Debian packages with
# apt, and a Python environment in ${MEGADICT_HOME:-~/.cache/megadict}/venv that holds LibTorch.
# Every clone of the repository shares that environment. A second call finds nothing to do.
#
#   tools/bootstrap.sh                  to build, harvest, train
#   tools/bootstrap.sh --tests          also what tests/run.sh needs (the Python peers, SLURM, a browser)
#   tools/bootstrap.sh --cpu-only-lib   only what compiling and running the C++ program needs
#   tools/bootstrap.sh --sandbox        only SLURM and MPI, for tools/slurm_sandbox.sh
#
# MEGADICT_PYTHON names the Python to use (3.10 or newer); otherwise the first fitting one is taken.
# Debian 12 is tested. Elsewhere it says so and tries.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=tools/progress.sh
source "$root/tools/progress.sh"

build_packages="cmake ninja-build ccache g++ git openmpi-bin libopenmpi-dev libhdf5-dev
  libboost-program-options-dev nlohmann-json3-dev libfmt-dev libdnnl-dev libgtest-dev libgmock-dev
  librapidcheck-dev libbenchmark-dev zlib1g-dev python3 python3-venv"
sandbox_packages="slurmctld slurmd slurm-client openmpi-bin libopenmpi-dev"
test_packages="clang-format-14 shellcheck chromium $sandbox_packages"

level=tools
for argument in "$@"; do
  case $argument in
    --tests) level=tests ;;
    --cpu-only-lib) level=lib ;;
    --sandbox) level=sandbox ;;
    -h | --help)
      sed -n '2,/^set/{/^#/!d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *)
      printf 'bootstrap.sh: unknown option %s; there are --tests, --cpu-only-lib, --sandbox, --help\n' "$argument" >&2
      exit 2
      ;;
  esac
done

venv=$MEGADICT_HOME/venv
stamp=$venv/megadict-stamp      # one line for each level that is complete: "LEVEL HASH"
unfinished=$venv.unfinished     # exists while the environment is being changed
log=$MEGADICT_HOME/bootstrap.log

# ---- Debian packages ---------------------------------------------------------------------------

missing_packages() {
  local installed name
  # shellcheck disable=SC2086
  installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' $1 2>/dev/null |
    awk '$2 == "installed" {print $1}') || true
  for name in $1; do
    grep -qx "$name" <<<"$installed" || printf '%s ' "$name"
  done
}

# How to become root: "" (is root), "sudo", "sudo -n", or status 1.
root_prefix() {
  if [ "$(id -u)" -eq 0 ]; then
    return 0
  elif ! command -v sudo >/dev/null; then
    return 1
  elif [ -t 0 ]; then
    printf 'sudo'
  else
    sudo -n true 2>/dev/null && printf 'sudo -n'
  fi
}

apt() {
  # shellcheck disable=SC2086
  $become env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=900 "$@"
}

install_packages() {
  local wanted=$build_packages missing become=""
  [ "$level" != tests ] || wanted="$wanted $test_packages"
  [ "$level" != sandbox ] || wanted=$sandbox_packages
  if ! command -v apt-get >/dev/null; then
    say "no apt-get here: untested system, nothing installed. On Debian it would be: ${wanted//$'\n'/}"
    return
  fi
  if ! grep -qs '^VERSION_ID="12"' /etc/os-release || ! grep -qs '^ID=debian' /etc/os-release; then
    say "this is not Debian 12: untested here, trying all the same"
  fi
  missing=$(missing_packages "$wanted")
  if [ -z "$missing" ]; then
    say "Debian packages: all there"
    return
  fi
  if ! become=$(root_prefix); then
    die "Debian packages are missing and this user is neither root nor can use sudo" \
      "ask an administrator for: apt-get install --no-install-recommends $missing"
  fi
  say "Debian packages to install: $missing"
  watched "apt-get update" "$log" apt update
  # shellcheck disable=SC2086
  watched "apt-get install" "$log" apt install --no-install-recommends $missing
}

# ---- Python ------------------------------------------------------------------------------------

# Prints the first Python that is new enough and can make an environment.
find_python() {
  local candidate tried=""
  for candidate in ${MEGADICT_PYTHON:-python3 /usr/bin/python3 python3.13 python3.12 python3.11 python3.10}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
    tried="$tried $candidate"
  done
  die "no Python 3.10 or newer with venv (tried:$tried)" \
    "install python3-venv, or name one in MEGADICT_PYTHON"
}

# Files that decide what is in the environment at a level, in the order in which pip takes them.
requirement_files() {
  case $1 in
    lib) ;;
    tools) printf '%s\n' tools/constraints.txt tools/requirements.txt tools/requirements-nodeps.txt ;;
    tests) requirement_files tools && printf '%s\n' tests/requirements.txt ;;
  esac
}

lib_packages="torch==2.11.0 nvidia-cuda-runtime==13.0.* nvidia-cuda-cupti==13.0.*"

# "LEVEL HASH" as it stands in the stamp once that level is complete.
stamp_line() {
  local files
  files=$(requirement_files "$1")
  # shellcheck disable=SC2086
  printf '%s %s\n' "$1" "$({ printf '%s\n' "$lib_packages" "$python_version"; cd "$root" && cat $files </dev/null; } |
    sha256sum | cut -c 1-32)"
}

stamped() { grep -qsxF "$(stamp_line "$1")" "$stamp"; }

is_complete() {
  [ ! -e "$unfinished" ] || return 1
  case $level in
    lib) stamped lib || stamped tools || stamped tests ;;
    tools) stamped tools || stamped tests ;;
    tests) stamped tests ;;
  esac
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

# Joined by &&: the shell does not stop at a failure here, because the caller tests the status.
pip_install() {
  cd "$root" || return
  case $level in
    lib)
      # shellcheck disable=SC2086
      pip install --no-deps $lib_packages
      ;;
    tools) pip install -c tools/constraints.txt -r tools/requirements.txt && pip_install_nodeps ;;
    tests) pip install -c tools/constraints.txt -r tests/requirements.txt && pip_install_nodeps ;;
  esac
}

pip_install_nodeps() { pip install --no-deps -r tools/requirements-nodeps.txt; }

# Its Python starts and is the version the packages were installed for.
venv_is_sound() {
  local minor
  minor=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) &&
    [ -d "$venv/lib/python$minor" ]
}

# What a package installation changes; equal before and after a failed one = nothing was touched.
venv_state() { stat -c %Y.%Z "$venv"/lib/python3*/site-packages 2>/dev/null || true; }

change_venv() {
  local python=$1 before
  if [ -e "$unfinished" ]; then
    say "the environment $venv was left unfinished by an interrupted run: making it anew"
    rm -rf "$venv"
  elif [ -e "$venv" ] && ! venv_is_sound; then
    say "the Python of $venv is gone or another version now: making it anew"
    rm -rf "$venv"
  fi
  before=$(venv_state)
  touch "$unfinished"
  if [ ! -e "$venv" ]; then
    watched "Python environment in $venv from $python" "$log" "$python" -m venv "$venv"
  fi
  if ! watched "Python packages ($level; several GB the first time)" "$log" pip_install; then
    [ "$before" != "$(venv_state)" ] || rm -f "$unfinished"
    die "pip could not install the Python packages" "its last lines stand above; then run this again"
  fi
  stamp_line "$level" >"$stamp"
  [ "$level" != tests ] || stamp_line tools >>"$stamp"
  rm -f "$unfinished"
}

# ---- Packages whose pins contradict the environment's, in a folder of their own ------------------

peers=$MEGADICT_HOME/peers
peers_file=tests/requirements-peers.txt

peers_hash() { { "$venv/bin/python" -V; cat "$root/$peers_file"; } | sha256sum | cut -c 1-32; }

pip_install_peers() {
  rm -rf "$peers.making"
  pip install --no-deps --target "$peers.making" -r "$root/$peers_file" &&
    peers_hash >"$peers.making/megadict-stamp" && rm -rf "$peers" && mv "$peers.making" "$peers"
}

peers_stamped() { [ "$(peers_hash)" = "$(cat "$peers/megadict-stamp" 2>/dev/null)" ]; }

install_peers() {
  [ -e "$root/$peers_file" ] || die "$root/$peers_file is missing: the clone is not complete"
  if peers_stamped; then
    say "other tools' packages: all there, in $peers"
    return
  fi
  exec 9>"$MEGADICT_HOME/bootstrap.lock"
  flock 9
  peers_stamped || watched "other tools' packages in $peers" "$log" pip_install_peers ||
    die "pip could not install $peers_file" "its last lines stand above; then run this again"
  exec 9>&-
}

install_venv() {
  local python python_version file
  for file in $(requirement_files "$level"); do
    [ -e "$root/$file" ] || die "$root/$file is missing: the clone is not complete"
  done
  python=$(find_python)
  python_version=$("$venv/bin/python" -V 2>/dev/null || "$python" -V)
  if is_complete; then
    say "Python packages ($level): all there, in $venv"
    return
  fi
  exec 9>"$MEGADICT_HOME/bootstrap.lock"
  if ! flock -n 9; then
    say "another bootstrap is at work in $MEGADICT_HOME: waiting for it"
    flock 9
    python_version=$("$venv/bin/python" -V 2>/dev/null || "$python" -V)
  fi
  is_complete || change_venv "$python"
  exec 9>&-
}

# ------------------------------------------------------------------------------------------------

mkdir -p "$MEGADICT_HOME" || die "cannot make the folder $MEGADICT_HOME" "set MEGADICT_HOME to one that can be written"
say "Megadict set-up ($level), shared folder $MEGADICT_HOME"
install_packages
[ "$level" = sandbox ] || install_venv
[ "$level" != tests ] || install_peers
say "set-up complete in $(seconds_as_text "$SECONDS")"
