"""The real launch scripts on two SLURM nodes of this machine (tools/slurm_sandbox.sh)."""

import json
import os
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest
from slurm_box import sandbox, wait_for  # noqa: F401
from training import is_rank_of

pytestmark = pytest.mark.slow
LOSS = "losses/overall_loss"
ROWS, WIDTH, BATCH, STEPS = 8192, 32, 256, 600
TRAINING = {
    "data.batch_size": BATCH, "data.tokens": BATCH * STEPS, "model.n_latents": 192, "model.k": 4,
    "optim.lr": 1e-3, "log.every_steps": 1, "mesh.data": 2, "mesh.feature": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def activations(tmp_path_factory) -> Path:
    """One shard of noise around 64 directions, written by h5py."""
    folder = tmp_path_factory.mktemp("acts")
    random = np.random.default_rng(1)
    codes = random.random((ROWS, 64)) * (random.random((ROWS, 64)) < 0.06)
    rows = (codes @ random.standard_normal((64, WIDTH))).astype(np.float32)
    with h5py.File(folder / "0000.h5", "w") as shard:
        shard.create_dataset("activations", data=rows, chunks=(2048, WIDTH), fletcher32=True)
        shard.attrs.update(megadict_version="test", model="synthetic", hook="none", layer=0,
                           tokenizer="none", d_in=WIDTH, dtype="float32", rows=ROWS)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def submit(sandbox, repo_root, megadict_bin, activations, tmp_path_factory):
    """submit(name, sbatch words..., args=train's) -> job number, folder in which the job runs. Log: NAME.out."""
    config = tmp_path_factory.mktemp("config") / "run.ini"
    config.write_text("".join(f"{name} = {value}\n" for name, value in TRAINING.items()))

    def start(name: str, *words: str, args: tuple = (), **env: str) -> tuple[str, Path]:
        folder = tmp_path_factory.mktemp(name)
        number = sandbox.run(
            "sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", f"--chdir={folder}",
            f"--output={folder}/{name}.out", f"--job-name={name}", *words,
            str(repo_root / "launch" / "train.sbatch"), str(config), "--data.path", str(activations), *args,
            env={"MEGADICT_BIN": str(megadict_bin)} | env,
        )  # fmt: skip
        return number.strip(), folder

    return start


def metrics(run_dir: Path) -> list[dict]:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def losses(run_dir: Path) -> dict[int, float]:
    """Loss by step; a later line about the same step replaces an earlier one."""
    return {line["step"]: line[LOSS] for line in metrics(run_dir) if LOSS in line}


def wait_for_step(run_dir: Path, step: int) -> None:
    wait_for(f"step {step} in {run_dir.name}", lambda: max(losses(run_dir), default=0) >= step)


def ranks_in(folder: Path) -> list[str]:
    """Process ids of the ranks of the job that runs in `folder`."""
    return [p.name for p in Path("/proc").glob("[0-9]*")
            if is_rank_of(p, "run") and Path(p, "cwd").resolve() == folder]  # fmt: skip


def environment_of(pid: str) -> list[str]:
    return (Path("/proc") / pid / "environ").read_text().split("\0")


def test_two_nodes_have_their_own_local_ranks(sandbox, megadict_bin):
    text = sandbox.run("srun", "--mpi=pmix", "-N2", "--ntasks-per-node=2", str(megadict_bin), "info")
    assert "srun, 4 rank(s) on 2 node(s)" in text
    rows = [line.split()[:3] for line in text.splitlines() if line.strip()[:1].isdigit()]
    assert rows == [["0", "0", "0"], ["1", "0", "1"], ["2", "1", "0"], ["3", "1", "1"]]


@pytest.mark.parametrize(("plugin", "line"), [
    ("none", "megadict: srun started 4 tasks but MPI sees 1. hint: srun --mpi=pmix"),
    ("pmi2", "megadict: srun --mpi=pmi2 does not start Open MPI. hint: srun --mpi=pmix; where Open MPI was built with "
             "PMI, MEGADICT_MPI=1 tries it"),
])  # fmt: skip
def test_a_wrong_mpi_plugin_gives_one_line(sandbox, megadict_bin, plugin, line):
    done = sandbox.call("run", "srun", f"--mpi={plugin}", "-N2", "--ntasks-per-node=2", str(megadict_bin), "info")
    own = [text for text in done.stderr.splitlines() if not text.startswith(("srun:", "slurmstepd:"))]
    assert (done.returncode, own, done.stdout) == (2, [line], "")


@pytest.fixture(scope="module")
def whole(sandbox, submit) -> dict[int, float]:
    """The losses of the run that nothing interrupted."""
    number, folder = submit("whole", RUN_DIR="run")
    job = sandbox.wait_for_state(number, "COMPLETED", "FAILED")
    assert job["ExitCode"] == "0:0", (folder / "whole.out").read_text()
    found = losses(folder / "run")
    assert max(found) == STEPS
    return found


def test_usr1_saves_requeues_and_resumes_to_the_uninterrupted_result(sandbox, submit, whole):
    number, folder = submit("stopped", RUN_DIR="run")
    log = folder / "stopped.out"
    wait_for_step(folder / "run", STEPS // 10)
    sandbox.run("scancel", "--signal=USR1", number)
    sandbox.wait_for_state(number, "PENDING", "COMPLETED", "FAILED")
    assert "exit 75, restart 0, run" in log.read_text(), log.read_text()
    assert max(losses(folder / "run")) < STEPS, "the run was over before the signal came"
    sandbox.restart_now(number)
    job = sandbox.wait_for_state(number, "COMPLETED", "FAILED")
    assert (job["ExitCode"], job["Restarts"]) == ("0:0", "1"), log.read_text()
    assert "exit 0, restart 1, run" in log.read_text()
    assert losses(folder / "run") == whole


def test_the_signal_before_the_time_limit_saves_and_requeues(sandbox, submit):
    """SLURM looks at its clock every half-minute: USR1 comes 60 to 90 s before the end."""
    number, folder = submit("limit", "--time=2", "--signal=USR1@60", RUN_DIR="run",
                            args=("--data.tokens", "1e9", "--log.every_steps", "20"))  # fmt: skip
    wait_for_step(folder / "run", 20)
    wait_for("the job to be requeued", lambda: sandbox.job(number)["Restarts"] == "1")
    sandbox.run("scancel", number)
    assert "exit 75, restart 0, run" in (folder / "limit.out").read_text()
    newest = folder / "run" / "checkpoints" / (folder / "run" / "latest").read_text().strip()
    assert json.loads((newest / "state.json").read_text())["step"] >= 20


def test_term_saves_and_is_not_requeued(sandbox, submit):
    number, folder = submit("cancelled", RUN_DIR="run")
    wait_for_step(folder / "run", STEPS // 10)
    sandbox.run("scancel", number)
    assert sandbox.wait_for_state(number, "CANCELLED")["Restarts"] == "0"
    wait_for("the tasks' code", lambda: "Exited with exit code 143" in (folder / "cancelled.out").read_text(), 120)
    assert (folder / "run" / "latest").exists()
    assert not list((folder / "run" / "checkpoints").glob("*.tmp"))


def test_a_killed_rank_ends_the_job_and_the_requeued_one_goes_on(sandbox, submit, whole):
    number, folder = submit("killed", RUN_DIR="run", args=("--checkpoint.every_steps", "50"))
    log = folder / "killed.out"
    wait_for_step(folder / "run", 120)
    last = [pid for pid in ranks_in(folder) if "SLURM_PROCID=3" in environment_of(pid)]
    os.kill(int(last[0]), signal.SIGKILL)
    job = sandbox.wait_for_state(number, "FAILED", "COMPLETED", "PENDING")
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "137:0", "0"), log.read_text()
    assert "exit 137, restart 0, run" in log.read_text()
    sandbox.run("scontrol", "requeue", number)
    sandbox.restart_now(number)
    job = sandbox.wait_for_state(number, "COMPLETED", "FAILED")
    assert (job["ExitCode"], job["Restarts"]) == ("0:0", "1"), log.read_text()
    assert "resuming 'run/checkpoints/step_0000001" in log.read_text()
    assert losses(folder / "run") == whole


def test_every_node_stages_the_shards(sandbox, submit, activations, whole):
    """Here both nodes have one disk: the second leader waits for the first and finds its copy."""
    number, folder = submit("staged", RUN_DIR="run", args=("--data.stage_dir", "disk"))
    job = sandbox.wait_for_state(number, "COMPLETED", "FAILED")
    log = (folder / "staged.out").read_text()
    assert job["ExitCode"] == "0:0", log
    assert log.count("staging 1 of 1 shards in disk") == 1 and losses(folder / "run") == whole
    copies = [path for path in (folder / "disk").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in copies] == [(activations / "0000.h5").read_bytes()]


@pytest.mark.parametrize(("plugin", "code", "line"), [
    ("none", "2:0", "megadict: srun started 4 tasks but MPI sees 1"),
    ("nosuch", "2:0", "this SLURM has no MPI plugin 'nosuch'. hint: SRUN_MPI may be one of: pmix"),
])  # fmt: skip
def test_a_wrong_plugin_ends_the_job_with_its_code(sandbox, submit, plugin, code, line):
    number, folder = submit("blind", RUN_DIR="run", SRUN_MPI=plugin)
    job = sandbox.wait_for_state(number, "FAILED", "COMPLETED")
    assert (job["ExitCode"], job["Restarts"]) == (code, "0")
    assert line in (folder / "blind.out").read_text()


def test_requeue_of_one_array_element_leaves_the_others_alone(sandbox, submit):
    number, folder = submit("array", "--array=0-1", f"--output={Path('array-%a.out')}")
    first, last = f"{number}_0", f"{number}_1"
    for element in (first, last):
        wait_for_step(folder / "runs" / f"array-{element}", 5)
    sandbox.run("scancel", "--signal=USR1", last)  # the last element bears the array's own number
    sandbox.wait_for_state(last, "PENDING")
    assert sandbox.job(first)["Restarts"] == "0"
    sandbox.restart_now(last)
    ends = [sandbox.wait_for_state(element, "COMPLETED", "FAILED") for element in (first, last)]
    assert [(job["ExitCode"], job["Restarts"]) for job in ends] == [("0:0", "0"), ("0:0", "1")]
