"""launch/pipeline.sh on two SLURM nodes: text -> activations -> dictionary -> scores -> export."""

import json

import pytest
from slurm_box import sandbox, wait_for  # noqa: F401
from tiny_models import WIDTH, make_model, stories, write_text

pytestmark = pytest.mark.slow
CONFIG = """[data]
batch_size = 64
tokens = 1920
[model]
n_latents = 96
k = 4
[log]
every_steps = 5
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    make_model(folder / "model", "gpt2")
    write_text(folder / "text.txt", stories(60))
    (folder / "run.ini").write_text(CONFIG)
    return folder


def pipeline(sandbox, place, megadict_bin, out, *more, text="text.txt"):  # noqa: F811
    harvest = (f"--model {place / 'model'} --layer 1 --text {place / text} --context 32 --shard_rows 500 "
               "--eval_fraction 0.1")  # fmt: skip
    return sandbox.call("run", str(sandbox.repo / "launch" / "pipeline.sh"), "--out", str(place / out), "--config",
                        str(place / "run.ini"), "--harvest", harvest, "--slices", "3", "--sbatch",
                        "--cpus-per-task=1", "--train_sbatch", "--nodes=2 --ntasks-per-node=2", *more,
                        env={"MEGADICT_BIN": str(megadict_bin)})  # fmt: skip


def wait_for_all(sandbox):  # noqa: F811
    wait_for("the jobs", lambda: sandbox.run("squeue", "-h") == "", 600)


def logs(place, out):
    return "".join(f"== {path.name}\n{path.read_text()}" for path in sorted((place / out / "log").glob("*.out")))


def test_from_text_to_an_exported_dictionary(sandbox, place, megadict_bin):  # noqa: F811
    done = pipeline(sandbox, place, megadict_bin, "all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["harvest", "train", "eval", "export"]
    wait_for_all(sandbox)
    out = place / "all"
    assert (out / "eval.json").exists() and (out / "saelens").exists(), logs(place, "all")
    names = {path.name.split("_shard")[0] for path in (out / "acts").glob("*.h5")}
    assert names == {"slice_00000", "slice_00001", "slice_00002"}
    assert len((out / "run" / "ranks.txt").read_text().splitlines()) == 5
    assert 0 < json.loads((out / "eval.json").read_text())["fvu"] < 1

    from sae_lens import SAE

    sae = SAE.load_from_disk(str(out / "saelens"))
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (WIDTH, 96)

    before = {path: path.stat().st_mtime_ns for path in (out / "acts").rglob("*.h5")}
    again = pipeline(sandbox, place, megadict_bin, "all")
    assert again.returncode == 0 and "saelens is there" in again.stdout
    wait_for_all(sandbox)
    assert "is complete: nothing to do" in logs(place, "all")
    assert before == {path: path.stat().st_mtime_ns for path in (out / "acts").rglob("*.h5")}


def test_a_job_that_fails_cancels_those_behind_it(sandbox, place, megadict_bin):  # noqa: F811
    (place / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    done = pipeline(sandbox, place, megadict_bin, "bad", text="latin.txt")
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for_all(sandbox)
    assert "is not UTF-8" in logs(place, "bad") and "exit 3, slice 0/3" in logs(place, "bad")
    assert sorted(path.name for path in (place / "bad").iterdir()) == ["acts", "log"]


def test_an_element_that_is_out_of_time_requeues_itself(sandbox, place):  # noqa: F811
    """What --signal=B:USR1 sends, sent by hand."""
    write_text(place / "long.txt", stories(3000))
    log = place / "harvest.out"
    number = sandbox.run("sbatch", "--parsable", "--cpus-per-task=1", "--array=0-0", f"--output={log}",
                         str(sandbox.repo / "launch" / "harvest.sbatch"), "--model", str(place / "model"), "--layer",
                         "1", "--text", str(place / "long.txt"), "--context", "32", "--shard_rows", "1000",
                         "--batch", "1", "--out", str(place / "slow"), env={"MEGADICT_ROOT": str(sandbox.repo)}).strip()  # fmt: skip
    wait_for("a shard", lambda: list((place / "slow").glob("*.h5")))
    sandbox.run("scancel", "--batch", "--signal=USR1", f"{number}_0")
    sandbox.wait_for_state(f"{number}_0", "PENDING", "COMPLETED", "FAILED")
    assert "exit 143, slice 0/1, restart 0" in log.read_text()
    sandbox.restart_now(f"{number}_0")
    job = sandbox.wait_for_state(f"{number}_0", "COMPLETED", "FAILED")
    assert (job["ExitCode"], job["Restarts"]) == ("0:0", "1"), log.read_text()
    assert "rows are already there" in log.read_text() and "exit 0, slice 0/1, restart 1" in log.read_text()


@pytest.mark.parametrize(("more", "part"), [
    (("--slices", "0"), "--slices '0'"), (("--format", "onnx"), "--format 'onnx'"),
    (("--steps", "1"), "unknown option"),
    (("--harvest", "--model x --layer 1 --out acts"), "--harvest with --out or --slice"), (("--out",), "needs a value"),
])  # fmt: skip
def test_refusals_before_any_job(sandbox, place, megadict_bin, more, part):  # noqa: F811
    done = pipeline(sandbox, place, megadict_bin, "refused", *more)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert part in done.stderr and sandbox.run("squeue", "-h") == "" and not (place / "refused").exists()
