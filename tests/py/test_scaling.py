"""launch/scaling.sh: series of runs through sbatch on two nodes and through mpirun; their table and plot."""

import json
import os
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest
from slurm_box import sandbox, wait_for  # noqa: F401
from training import MPI_ENV, run, synth

SETTINGS = ["--", "--data.batch_size", "128", "--model.n_latents", "96", "--model.k", "4", "--kernels.encode", "fp32"]


@pytest.fixture(scope="module")
def place(megadict_bin, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scaling")
    synth(megadict_bin, folder / "acts", rows=2000)
    (folder / "run.ini").write_text("[optim]\nlr = 1e-3\n")
    return folder


def words(repo_root, place, out, *more):
    return [str(repo_root / "launch" / "scaling.sh"), "--config", str(place / "run.ini"), "--data",
            str(place / "acts"), "--out", str(out), "--steps", "10", *more, *SETTINGS]  # fmt: skip


def check(out, ranks):
    points = json.loads((out / "scaling.json").read_text())
    assert sorted({point["ranks"] for point in points}) == ranks
    assert {point["series"] for point in points} == {"strong", "weak-n", "weak-B"}
    for point in points:
        p = point["ranks"]
        assert point["n_latents"] == 96 * (p if point["series"] == "weak-n" else 1)
        assert point["batch_size"] == 128 * (p if point["series"] == "weak-B" else 1)
        assert point["mesh"] == (f"{p}x1" if point["series"] == "weak-B" else f"1x{p}")
        assert point["tokens_per_s"] > 0
        # What is no estimate is an integer formula: exactly so many bytes in each step.
        assert point["counted_bytes"] == point["formula_bytes"], point
        assert p == 1 or point["counted_bytes"] > 0
        if p == 1:
            assert point["efficiency"] == 1
    svg = ElementTree.parse(out / "scaling.svg").getroot()
    lines = [node for node in svg.iter() if node.tag.endswith("polyline")]
    assert len(lines) >= 6 and (out / "scaling.md").read_text().count("\n") == len(points) + 2


@pytest.mark.slow
def test_through_sbatch_on_two_nodes(sandbox, repo_root, megadict_bin, place):  # noqa: F811
    out = place / "sbatch"
    submitted = sandbox.run(*words(repo_root, place, out, "--launch", "sbatch", "--ranks", "1,2,4", "--ranks_per_node",
                                   "2", "--sbatch", "--cpus-per-task=1"),
                            env={"MEGADICT_BIN": str(megadict_bin)})  # fmt: skip
    assert "submitted; when they are done: " in submitted
    wait_for("the jobs", lambda: sandbox.run("squeue", "-h") == "", 600)
    table = redraw(repo_root, out)
    assert "not done yet" not in table.stdout, "".join(path.read_text() for path in out.glob("*/log"))
    check(out, [1, 2, 4])
    again = sandbox.run(*words(repo_root, place, out, "--launch", "sbatch", "--ranks", "1,2,4"),
                        env={"MEGADICT_BIN": str(megadict_bin)})  # fmt: skip
    assert "rank(s):" not in again and sandbox.run("squeue", "-h") == ""


def redraw(repo_root, out):
    return subprocess.run([repo_root / "tools" / "scaling.py", out], capture_output=True, text=True, timeout=120)


def call(command, megadict_bin):
    return subprocess.run(command, env=os.environ | MPI_ENV | {"MEGADICT_BIN": str(megadict_bin)}, text=True,
                          capture_output=True, timeout=600)  # fmt: skip


def test_through_mpirun_with_the_planner_beside_it(repo_root, megadict_bin, place):
    machine = place / "machine.json"
    assert run(megadict_bin, ["bench", "machine", "--json", machine, "--seconds", "0.1"]).returncode == 0
    out = place / "mpirun"
    done = call(words(repo_root, place, out, "--ranks", "1,2", "--mpirun", "--oversubscribe", "--machine",
                      str(machine)), megadict_bin)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    check(out, [1, 2])
    assert all(point["planned_step_s"] > 0 for point in json.loads((out / "scaling.json").read_text()))
    (out / "scaling.svg").unlink()
    assert redraw(repo_root, out).returncode == 0 and (out / "scaling.svg").exists()


@pytest.mark.parametrize(("more", "part"), [
    (["--ranks", "1,x"], "--ranks '1,x'"), (["--steps", "2"], "--steps '2'"), (["--launch", "qsub"], "--launch 'qsub'"),
    (["--rank", "3"], "unknown option --rank"), (["--machine", "none.json"], "--machine 'none.json' is no file"),
    (["--ranks", "3", "--ranks_per_node", "2"], "3 ranks do not fill nodes of 2"),
    (["--data", "nothing"], "--data 'nothing' is no folder"), (["--config", "none.ini"], "is no file"),
])  # fmt: skip
def test_refusals(repo_root, megadict_bin, place, tmp_path, more, part):
    done = call(words(repo_root, place, tmp_path / "out", *more), megadict_bin)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert part in done.stderr and not (tmp_path / "out").exists()


def test_what_the_series_set_is_refused(repo_root, megadict_bin, place, tmp_path):
    done = call([*words(repo_root, place, tmp_path / "out"), "--mesh.data", "2"], megadict_bin)
    assert done.returncode == 2 and "--mesh.data is set by the series" in done.stderr


def test_the_table_of_nothing_is_refused(repo_root, tmp_path):
    done = redraw(repo_root, tmp_path)
    assert done.returncode == 3 and "no points.tsv" in done.stderr and len(done.stderr.splitlines()) == 1


def test_plan_says_its_numbers_as_json(megadict_bin, tmp_path):
    args = ["plan", "--d", "64", "--ranks", "6", "--model.n_latents", "1000", "--data.tokens", "1e6"]
    done = run(megadict_bin, [*args, "--json", tmp_path / "plan.json"])
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["ranks"] == plan["mesh"]["data"] * plan["mesh"]["feature"] == 6
    assert sum(transfer["bytes"] for transfer in plan["transfers"]) == plan["received_bytes"]
    for number in (plan["received_bytes"], plan["memory_bytes"]["peak"], plan["parameters"]):
        assert f" {number} " in done.stdout or f" {number} parameters" in done.stdout
    bad = run(megadict_bin, [*args, "--json", tmp_path / "nowhere" / "plan.json"])
    assert bad.returncode == 2 and "there is no folder" in bad.stderr and bad.stdout == ""
