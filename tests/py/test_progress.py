"""tools/progress.sh: a long command of a script, shown, ended and reported."""

import os
import signal
import subprocess
import time

import pytest

SCRIPT = """
source tools/progress.sh
trap 'echo caller; exit 9' INT TERM
watched {label} {log} bash -c '{command}'
echo "status $?"
trap -p TERM
"""


def heed_interrupts():
    """A shell cannot trap what it was started to ignore, as jobs in the background are."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def begin(repo_root, log, command):
    return subprocess.Popen(["bash", "-c", SCRIPT.format(label="work", log=log, command=command)],
                            cwd=repo_root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, start_new_session=True, preexec_fn=heed_interrupts)


def test_status_and_output_of_a_failure(repo_root, tmp_path):
    said = begin(repo_root, tmp_path / "log", "echo why; exit 7").communicate(timeout=60)[0]
    assert "why" in said and "work: failed with exit code 7" in said and "status 7" in said
    assert "echo caller" in said  # what the caller traps holds again


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_command_and_what_it_started(repo_root, tmp_path, number, status):
    pid_file = tmp_path / "pid"
    process = begin(repo_root, tmp_path / "log", f"sleep 600 & echo $! > {pid_file}; wait")
    while not (pid_file.exists() and pid_file.read_text().strip()):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, number)
    said = process.communicate(timeout=60)[0]
    assert "work: interrupted" in said and f"status {status}" in said, said
    stat = f"/proc/{pid_file.read_text().strip()}/stat"
    assert not os.path.exists(stat) or open(stat).read().split()[2] == "Z"


def on_a_terminal(words):
    """What a command writes to a terminal."""
    import pty

    said = b""
    main, other = pty.openpty()
    process = subprocess.Popen(list(map(str, words)), stdin=other, stdout=other, stderr=other)
    os.close(other)
    while True:
        try:
            block = os.read(main, 1 << 16)
        except OSError:  # the last writer has closed it
            break
        if not block:
            break
        said += block
    os.close(main)
    assert process.wait() == 0, said
    return said.decode()


@pytest.mark.parametrize("quiet", [False, True])
def test_the_binary_says_how_long_it_will_take(megadict_bin, tmp_path, quiet):
    words = [megadict_bin, *["--quiet"] * quiet, "data", "synth", "--out", tmp_path / "d", "--n_latents", 512]
    said = on_a_terminal([*words, "--d", 256, "--k", 64, "--rows", 60000])
    assert ("rows/s" in said and " left" in said) != quiet
