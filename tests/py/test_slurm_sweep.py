"""The job array of launch/sweep.sbatch on two SLURM nodes of this machine (tools/slurm_sandbox.sh)."""

import json
from pathlib import Path

import pytest
from slurm_box import sandbox  # noqa: F401
from training import run, same_bits, synth

pytestmark = pytest.mark.slow
BATCH, STEPS = 101, 40
NAMES = ("small", "blind", "large")


@pytest.fixture(scope="module")
def data(megadict_bin, tmp_path_factory) -> Path:
    return synth(megadict_bin, tmp_path_factory.mktemp("data") / "acts", rows=8000)


@pytest.fixture
def grid(tmp_path, data) -> tuple[Path, Path]:
    """Three points, of which the second has no data yet, and the folder where it looks for them."""
    absent = tmp_path / "absent"
    path = tmp_path / "grid.ini"
    path.write_text(
        f"[points]\nsmall = model.k=2 data.path={data}\nblind = model.k=3 data.path={absent}\n"
        f"large = model.k=4 data.path={data}\n[model]\nn_latents = 67\n"
        f"[data]\nbatch_size = {BATCH}\ntokens = {BATCH * STEPS}\n[optim]\nlr = 3e-3\n"
        "[mesh]\nfeature = 2\n[log]\nevery_steps = 10\n")  # fmt: skip
    return path, absent


def submit(box, repo_root, megadict_bin, folder: Path, grid: Path, points: str) -> str:
    return box.run(
        "sbatch", "--parsable", f"--array={points}", "--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1",
        f"--chdir={folder}", "--output=%A_%a.out", str(repo_root / "launch" / "sweep.sbatch"), str(grid),
        env={"MEGADICT_BIN": str(megadict_bin), "SWEEP_DIR": "sweep"},
    ).strip()  # fmt: skip


def ends(box, number: str, points: range) -> dict[int, str]:
    """Exit codes of the elements."""
    return {i: box.wait_for_state(f"{number}_{i}", "COMPLETED", "FAILED")["ExitCode"] for i in points}


def collected(megadict_bin, grid: Path, sweep: Path) -> tuple[str, dict[str, dict]]:
    done = run(megadict_bin, ["sweep", "--grid", grid, "--sweep.dir", sweep, "--collect"])
    assert done.returncode == 0, done.stderr
    return done.stdout, {row["name"]: row for row in json.loads((sweep / "sweep.json").read_text())["points"]}


def test_one_point_fails_and_a_second_submission_fills_the_hole(
        sandbox, repo_root, megadict_bin, data, grid, tmp_path):  # fmt: skip  # noqa: F811
    path, absent = grid
    sweep = tmp_path / "sweep"
    number = submit(sandbox, repo_root, megadict_bin, tmp_path, path, "0-2")
    logs = {i: tmp_path / f"{number}_{i}.out" for i in range(3)}
    codes = ends(sandbox, number, range(3))
    assert codes == {0: "0:0", 1: "1:0", 2: "0:0"}, "\n".join(log.read_text() for log in logs.values())
    assert "exit 1, restart 0, point 1 of sweep" in logs[1].read_text()
    text, rows = collected(megadict_bin, path, sweep)
    assert {name: (row["status"], row["code"]) for name, row in rows.items()} == {
        "small": ("done", 0), "blind": ("failed", 3), "large": ("done", 0)}  # fmt: skip
    assert str(absent) in rows["blind"]["error"]
    failed = [line for line in text.splitlines() if "failed 3" in line]
    assert len(failed) == 1 and str(absent) in failed[0]

    before = {name: (sweep / "points" / name / "point.json").stat().st_mtime_ns for name in NAMES}
    absent.symlink_to(data)
    number = submit(sandbox, repo_root, megadict_bin, tmp_path, path, "0-2")
    assert set(ends(sandbox, number, range(3)).values()) == {"0:0"}
    after = {name: (sweep / "points" / name / "point.json").stat().st_mtime_ns for name in NAMES}
    assert [name for name in NAMES if before[name] != after[name]] == ["blind"]
    _, rows = collected(megadict_bin, path, sweep)
    assert {row["status"] for row in rows.values()} == {"done"}
    # What SLURM started is what mpirun starts.
    lone = tmp_path / "lone"
    words = ["train", "--run.dir", lone, "--data.path", data, "--data.batch_size", BATCH, "--data.tokens",
             BATCH * STEPS, "--model.n_latents", 67, "--model.k", 3, "--optim.lr", "3e-3", "--mesh.feature", 2]
    done = run(megadict_bin, words, ranks=2)
    assert done.returncode == 0, done.stderr
    assert same_bits(lone / "final", sweep / "points" / "blind" / "final")


def test_an_element_beyond_the_grid_says_so(sandbox, repo_root, megadict_bin, grid, tmp_path):  # noqa: F811
    number = submit(sandbox, repo_root, megadict_bin, tmp_path, grid[0], "7")
    assert ends(sandbox, number, range(7, 8)) == {7: "2:0"}
    log = (tmp_path / f"{number}_7.out").read_text()
    assert "the grid has no point 7" in log and not (tmp_path / "sweep" / "points").exists()
