"""A cluster of two nodes on this machine (tools/slurm_sandbox.sh), for the tests of the launch scripts."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

SLURM_TOOLS = ("slurmctld", "slurmd", "srun", "sbatch", "scontrol", "scancel")


def wait_for(what: str, condition, limit_s: float = 300):
    """Polls until `condition()` is true and returns its value; the limit is a failure, not a skip."""
    deadline = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {limit_s} s for {what}"
        time.sleep(0.1)
    return value


class Sandbox:
    """Two nodes; `run` executes a command with that cluster."""

    def __init__(self, repo: Path, folder: Path):
        self.repo, self.folder = repo, folder
        self.script = str(repo / "tools" / "slurm_sandbox.sh")
        self.env = os.environ | {"SANDBOX_DIR": str(folder)}

    def call(self, *words: str, env: dict | None = None, limit_s: float = 300) -> subprocess.CompletedProcess:
        return subprocess.run([self.script, *words], env=self.env | (env or {}), cwd=self.repo, text=True,
                              capture_output=True, timeout=limit_s, stdin=subprocess.DEVNULL)  # fmt: skip

    def run(self, *words: str, env: dict | None = None) -> str:
        done = self.call("run", *words, env=env)
        assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        text = self.run("scontrol", "show", "job", "-o", number)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def wait_for_state(self, number: str, *states: str) -> dict[str, str]:
        return wait_for(f"job {number} to be {states}",
                        lambda: (job := self.job(number))["JobState"] in states and job)  # fmt: skip

    def restart_now(self, number: str) -> None:
        """Instead of the two minutes a requeued job waits, in which its old step is cleared away."""
        steps = "slurmstepd: [" + self.job(number)["JobId"] + "."
        wait_for(f"the old steps of job {number} to end",
                 lambda: not any(name.startswith(steps) for name in self.processes()))  # fmt: skip
        # The node refuses a job anew in the second, by its clock, in which it ended the old one.
        time.sleep(3)
        self.run("scontrol", "update", f"JobId={number}", "StartTime=now")

    def processes(self) -> list[str]:
        """Processes of this sandbox that live: its folder is in their environment."""
        mark, found = f"SANDBOX_DIR={self.folder}".encode(), []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue  # it ended while we looked, or is not ours
        return [name for name in found if "slurm" in name or "megadict" in name]


def require_slurm() -> None:
    missing = [t for t in SLURM_TOOLS if not shutil.which(t, path=os.environ["PATH"] + ":/usr/sbin")]
    if missing:
        pytest.skip(f"SLURM is not installed ({', '.join(missing)} missing): tools/bootstrap.sh --tests")


def new_folder() -> Path:
    """A short name of its own: the PMIx servers put sockets below it."""
    return Path(tempfile.mkdtemp(prefix="megadict-slurm-"))


@pytest.fixture(scope="module")
def sandbox(repo_root):
    require_slurm()
    box = Sandbox(repo_root, new_folder())
    started = box.call("up")
    assert started.returncode == 0, started.stdout + started.stderr
    yield box
    stopped = box.call("down")
    shutil.rmtree(box.folder, ignore_errors=True)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert wait_for("every process of the sandbox to end", lambda: not box.processes(), 60)
