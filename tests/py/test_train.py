"""The train command as a user meets it: meshes, resume, signals, crashes, bad data."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from training import (
    MPI_ENV,
    command,
    held_out_fvu,
    mesh_words,
    metrics,
    ranks_of,
    run,
    same_bits,
    start,
    steps_logged,
    synth,
    train_words,
)

MESHES = [(1, 1), (1, 2), (2, 1), (1, 3), (2, 2), (3, 2)]


@pytest.fixture(scope="module")
def data(megadict_bin, tmp_path_factory):
    return synth(megadict_bin, tmp_path_factory.mktemp("data") / "acts")


def wait_for_step(run_dir, process, step, limit_s=120):
    """Waits until the run has logged `step`; its own lines tell, no clock is trusted."""
    end = time.monotonic() + limit_s
    path = Path(run_dir) / "metrics.jsonl"
    while time.monotonic() < end:
        if path.exists() and any(done >= step for done in steps_logged(run_dir)):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached in {limit_s} s")


@pytest.mark.parametrize("fields", [{}, {"model__activation": "relu", "model__l1_coefficient": 0.05},
                                    {"model__decoder": "tied"}, {"model__activation": "batchtopk"}],
                         ids=["topk", "relu", "tied", "batchtopk"])
def test_every_mesh_learns_the_same(megadict_bin, data, tmp_path, fields):
    curves = {}
    for shape in MESHES:
        out = tmp_path / f"{shape[0]}x{shape[1]}"
        done = run(megadict_bin, train_words(data, out, **fields, **mesh_words(shape)),
                   ranks=shape[0] * shape[1])
        assert done.returncode == 0, done.stderr
        curves[shape] = [line["fvu"] for line in metrics(out) if "fvu" in line]
        final = held_out_fvu(out)
        assert final == pytest.approx(held_out_fvu(tmp_path / "1x1"), rel=5e-3), shape
    for shape, curve in curves.items():
        assert curve == pytest.approx(curves[1, 1], rel=1e-2), shape


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2)])
def test_stop_by_usr1_and_resume_gives_the_same_bits(megadict_bin, data, tmp_path, shape, activation):
    ranks = shape[0] * shape[1]
    steps = 4000  # seconds: a busy launcher may take one to forward the signal
    long = {"data__tokens": 101 * steps, "optim__ema": 0.99, "model__activation": activation}
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    done = run(megadict_bin, train_words(data, whole, **long, **mesh_words(shape)), ranks=ranks)
    assert done.returncode == 0, done.stderr
    words = train_words(data, halves, **long, **mesh_words(shape), run__resume="auto")
    process = start(megadict_bin, words, ranks=ranks)
    wait_for_step(halves, process, 50)
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, out + err
    stopped = json.loads((next((halves / "checkpoints").glob("step_*")) / "state.json").read_text())
    assert 0 < stopped["step"] < steps
    done = run(megadict_bin, words, ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert same_bits(whole / "final", halves / "final")
    assert steps_logged(halves) == steps_logged(whole)
    ends = [json.loads((out / "final" / "state.json").read_text()) for out in (whole, halves)]
    assert ends[0].get("threshold") == ends[1].get("threshold")
    assert ("threshold" in ends[0]) == (activation == "batchtopk")


def test_term_saves_and_says_143(megadict_bin, data, tmp_path):
    out = tmp_path / "run"
    process = start(megadict_bin, train_words(data, out, data__tokens=101 * 100000))
    wait_for_step(out, process, 10)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert list((out / "checkpoints").glob("step_*/state.json"))


def test_resume_on_another_mesh(megadict_bin, data, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "moved"
    more = {"data__tokens": 101 * 300, "checkpoint__every_steps": 100, "checkpoint__keep": 9}
    assert run(megadict_bin, train_words(data, whole, **more)).returncode == 0
    for step, shape in ((100, (3, 2)), (200, (2, 1))):
        moved = tmp_path / f"moved_{step}"
        checkpoint = whole / "checkpoints" / f"step_{step:09}"
        words = train_words(data, moved, **more, **mesh_words(shape), run__resume=checkpoint)
        done = run(megadict_bin, words, ranks=shape[0] * shape[1])
        assert done.returncode == 0, done.stderr
        assert f"step {step}" in done.stdout
        assert held_out_fvu(moved) == pytest.approx(held_out_fvu(whole), rel=5e-3)
    assert not out.exists()


def newest_complete(run_dir):
    names = [p.parent.name for p in (run_dir / "checkpoints").glob("step_*/state.json")]
    return max((name for name in names if not name.endswith(".tmp")), default=None)


def kill_words(data, out):
    """A run that spends a good part of its time writing: a checkpoint of 8 MB after each step."""
    return train_words(data, out, model__n_latents=20000, data__tokens=101 * 40, log__every_steps=1,
                       checkpoint__every_steps=1, run__resume="auto", **mesh_words((1, 2)))  # fmt: skip


def kill_one(binary, words, out, seed, in_checkpoint):
    """Kills one of two ranks at some instant, where `in_checkpoint` during a write; whether that left
    a checkpoint half written, and after how many seconds all had ended."""
    chance = random.Random(seed)
    process = start(binary, words, ranks=2)
    wait_for_step(out, process, chance.randrange(1, 30))
    victim = sorted(ranks_of(out))[seed % 2]
    time.sleep(chance.uniform(0, 0.3))
    while in_checkpoint and process.poll() is None and not list(out.glob("checkpoints/*.tmp/*")):
        time.sleep(1e-3)
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    process.communicate(timeout=30)
    assert process.returncode != 0
    while ranks_of(out):  # the launcher may end before its last rank
        assert time.monotonic() - began < 30
        time.sleep(0.01)
    seconds = time.monotonic() - began
    return bool(list(out.glob("checkpoints/*.tmp"))), seconds


@pytest.fixture(scope="module")
def uninterrupted(megadict_bin, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("kill") / "whole"
    done = run(megadict_bin, kill_words(data, out), ranks=2)
    assert done.returncode == 0, done.stderr
    return out


# MEGADICT_FULL=1 tries 20 instants. Every second one is during the write of a checkpoint.
@pytest.mark.parametrize("seed", range(20 if os.environ.get("MEGADICT_FULL") == "1" else 5))
def test_kill_9_at_any_instant_loses_nothing(megadict_bin, data, uninterrupted, tmp_path, seed):
    out, in_checkpoint = tmp_path / "run", seed % 2 == 1
    words = kill_words(data, out)
    for _ in range(5):  # a write may end between the look and the kill
        torn, seconds = kill_one(megadict_bin, words, out, seed, in_checkpoint)
        if torn or not in_checkpoint:
            break
        shutil.rmtree(out)
    assert torn or not in_checkpoint
    newest = newest_complete(out)
    print(f"seed {seed}: killed after {newest}, half a checkpoint left: {torn}, all ended in {seconds:.1f} s")
    done = run(megadict_bin, words, ranks=2)
    assert done.returncode == 0, done.stderr
    if newest:
        assert f"resuming '{out}/checkpoints/{newest}' at step {int(newest[5:])}\n" in done.stdout
    assert not list(out.rglob("*.tmp*"))
    assert same_bits(uninterrupted / "final", out / "final")
    assert steps_logged(out) == steps_logged(uninterrupted)


def test_a_second_run_into_the_folder_is_refused(megadict_bin, data, tmp_path):
    out = tmp_path / "run"
    assert run(megadict_bin, train_words(data, out)).returncode == 0
    before = sorted((p, p.stat().st_mtime_ns) for p in out.rglob("*"))
    done = run(megadict_bin, train_words(data, out))
    assert done.returncode == 2
    assert done.stderr.count("megadict: ") == 1 and "run.resume" in done.stderr
    assert before == sorted((p, p.stat().st_mtime_ns) for p in out.rglob("*"))


def test_resume_refuses_another_model_and_other_data(megadict_bin, data, tmp_path):
    out = tmp_path / "run"
    assert run(megadict_bin, train_words(data, out)).returncode == 0
    other = run(megadict_bin, train_words(data, out, model__k=2, run__resume="auto"))
    assert other.returncode == 2 and "model.k" in other.stderr
    moved = synth(megadict_bin, tmp_path / "other", rows=9000, seed=2)
    other = run(megadict_bin, train_words(moved, out, run__resume="auto"))
    assert other.returncode in (2, 3) and other.stderr.count("megadict: ") == 1


def test_init_from_starts_from_another_dictionary(megadict_bin, data, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(megadict_bin, train_words(data, first, data__tokens=101 * 500)).returncode == 0
    words = train_words(data, second, model__init_from=first, **mesh_words((2, 1)))
    done = run(megadict_bin, words, ranks=2)
    assert done.returncode == 0, done.stderr
    assert metrics(second)[0]["fvu"] < metrics(first)[0]["fvu"] / 2


def test_dead_is_null_before_a_window_has_passed(megadict_bin, data, tmp_path):
    out = tmp_path / "run"
    words = train_words(data, out, dead__window_tokens=101 * 30)
    assert run(megadict_bin, words).returncode == 0
    dead = {line["step"]: line["dead_pct"] for line in metrics(out) if "dead_pct" in line}
    assert dead[10] is None and dead[20] is None
    assert dead[40] is not None and dead[60] is not None


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1)])
def test_a_row_that_is_not_finite_is_named(megadict_bin, data, tmp_path, shape):
    bad = tmp_path / "bad"
    shutil.copytree(data, bad)
    shard = sorted(bad.glob("*.h5"))[0]
    with h5py.File(shard, "r+") as file:
        row = file["activations"][77]
        row[3] = np.nan
        file["activations"][77] = row
        del file["chunk_checksum"]  # or the file counts as corrupt
    done = run(megadict_bin, train_words(bad, tmp_path / "run", data__tokens=19000,
                                         **mesh_words(shape)), ranks=shape[0] * shape[1])
    assert done.returncode == 3, done.stderr
    assert shard.name in done.stderr and "row 77" in done.stderr


@pytest.mark.parametrize("shape", [(1, 1), (2, 2)])
def test_divergence_exits_4_and_keeps_the_last_checkpoint(megadict_bin, data, tmp_path, shape):
    from safetensors.numpy import load_file, save_file

    out, ranks = tmp_path / "run", shape[0] * shape[1]
    words = train_words(data, out, **mesh_words(shape), checkpoint__every_steps=30,
                        run__resume="auto")
    assert run(megadict_bin, words, ranks=ranks).returncode == 0
    shutil.rmtree(out / "final")
    shutil.rmtree(out / "checkpoints" / "step_000000060")
    # Weights that overflow as soon as they are used.
    kept = out / "checkpoints" / "step_000000030"
    for part in kept.glob("part_*.safetensors"):
        tensors = load_file(part)
        save_file({**tensors, "W_enc": np.full_like(tensors["W_enc"], 3e38)}, part)
    done = run(megadict_bin, words, ranks=ranks)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "step 30" in done.stderr and str(kept) in done.stderr and "data rows" in done.stderr
    assert [p.name for p in (out / "checkpoints").iterdir()] == [kept.name]
    assert not (out / "final").exists()


def test_a_planted_dictionary_is_found(megadict_bin, tmp_path):
    data = synth(megadict_bin, tmp_path / "acts", rows=100000, latents=256, d=64, k=4)
    out = tmp_path / "run"
    words = train_words(data, out, model__n_latents=256, model__k=4, data__batch_size=512,
                        data__tokens=1500000, dead__window_tokens=50000, eval__truth=data)
    assert run(megadict_bin, words).returncode == 0
    scores = json.loads((out / "final" / "eval.json").read_text())
    assert scores["mcc"] > 0.95 > 0.5 > scores["random_mcc"], scores


@pytest.mark.parametrize(("latents", "shape"), [(5, (4, 1)), (9, (6, 1)), (7, (2, 3))])
def test_data_ranks_that_own_no_latents(megadict_bin, data, tmp_path, latents, shape):
    fields = {"model__n_latents": latents, "model__k": 2, "run__resume": "auto"}
    one, many = tmp_path / "one", tmp_path / "many"
    assert run(megadict_bin, train_words(data, one, **fields)).returncode == 0
    words = train_words(data, many, **fields, **mesh_words(shape))
    done = run(megadict_bin, words, ranks=shape[0] * shape[1])
    assert done.returncode == 0, done.stderr
    assert held_out_fvu(many) == pytest.approx(held_out_fvu(one), rel=5e-3)
    # What such a mesh wrote, one process reads.
    more = train_words(data, many, **fields, data__tokens=101 * 80)
    assert "step 60" in run(megadict_bin, more).stdout


def wait_for_handler(process, signum):
    """Until the program has its handler: before, while libraries are loaded, nobody can catch it."""
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
        if int(caught, 16) >> (signum - 1) & 1:
            return
        time.sleep(0.005)


def folder_steps(run_dir):
    return sorted(int(p.name[5:]) for p in (run_dir / "checkpoints").iterdir())


def test_going_back_to_an_earlier_checkpoint_leaves_the_later_ones(megadict_bin, data, tmp_path):
    out = tmp_path / "run"
    kept = {"data__tokens": 101 * 300, "checkpoint__every_steps": 50, "checkpoint__keep": 4}
    assert run(megadict_bin, train_words(data, out, **kept)).returncode == 0
    assert folder_steps(out) == [150, 200, 250, 300]
    # Back to 150 with another rate; stopped soon after, the branch holds what was just saved.
    back = train_words(data, out, **kept, run__resume=out / "checkpoints/step_000000150",
                       optim__decay_fraction=0.1)
    process = start(megadict_bin, back)
    wait_for_handler(process, signal.SIGUSR1)  # long before the first step
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 75
    stopped = max(step for step in folder_steps(out))
    assert 150 < stopped < 300
    assert (out / "latest").read_text() == f"step_{stopped:09}\n"
    done = run(megadict_bin, train_words(data, out, **kept, run__resume="auto",
                                         optim__decay_fraction=0.1))
    assert done.returncode == 0 and f"at step {stopped}\n" in done.stdout


def test_milestones_are_kept_beside_the_newest(megadict_bin, data, tmp_path):
    out = tmp_path / "run"
    kept = {"checkpoint__every_steps": 10, "checkpoint__keep": 1, "checkpoint__keep_ratio": 2,
            "checkpoint__every_minutes": 0}
    # The first in each of [8, 16), [16, 32), [32, 64), ... and the newest.
    words = train_words(data, out, **kept, data__tokens=101 * 150)
    assert run(megadict_bin, words).returncode == 0
    assert folder_steps(out) == [10, 20, 40, 70, 130, 150]
    longer = train_words(data, out, **kept, data__tokens=101 * 280, run__resume="auto")
    assert run(megadict_bin, longer).returncode == 0
    assert folder_steps(out) == [10, 20, 40, 70, 130, 260, 280]
    refused = run(megadict_bin, train_words(data, tmp_path / "no", checkpoint__keep_ratio=1))
    assert refused.returncode == 2
    assert "checkpoint.keep_ratio = 1; allowed: 0 (off), or 1.01 and more" in refused.stderr


def test_final_counts_until_something_newer_is_saved(megadict_bin, data, tmp_path):
    out = tmp_path / "run"
    assert run(megadict_bin, train_words(data, out)).returncode == 0
    evaluate = ["eval", "--run.dir", out, "--data.path", data, "--json", tmp_path / "e.json"]

    def evaluated():
        assert run(megadict_bin, evaluate).returncode == 0
        return json.loads((tmp_path / "e.json").read_text())["checkpoint"]

    assert evaluated() == str(out / "final")
    longer = train_words(data, out, data__tokens=101 * 30000, run__resume="auto")
    process = start(megadict_bin, longer)
    wait_for_step(out, process, 80)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert evaluated().startswith(str(out / "checkpoints" / "step_"))
    # Without its checkpoints a run goes on from final/, which holds everything.
    shutil.rmtree(out / "checkpoints")
    before = metrics(out)[0]
    done = run(megadict_bin, train_words(data, out, data__tokens=101 * 90, run__resume="auto"))
    assert done.returncode == 0 and "at step 60\n" in done.stdout
    assert metrics(out)[0] == before


def test_a_refused_resume_changes_nothing(megadict_bin, data, tmp_path):
    out = tmp_path / "run"
    assert run(megadict_bin, train_words(data, out)).returncode == 0
    other = synth(megadict_bin, tmp_path / "other", seed=2)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    done = run(megadict_bin, train_words(other, out, run__resume="auto", data__tokens=101 * 90,
                                         optim__beta1=0.5))
    assert done.returncode == 2 and "fingerprint" in done.stderr
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_an_error_that_one_rank_alone_meets_is_said(megadict_bin, data, tmp_path):
    (tmp_path / "good.ini").write_text("[model]\nk = 3\n")
    words = train_words(data, tmp_path / "run")
    alone = [[*command(megadict_bin, words), "--config", tmp_path / name]
             for name in ("good.ini", "absent.ini")]
    mpi = command(megadict_bin, [], ranks=2)
    launcher = mpi[:1] + mpi[3:-1]
    done = subprocess.run(
        [*launcher, "-n", "1", *map(str, alone[0]), ":", "-n", "1", *map(str, alone[1])],
        capture_output=True, text=True, timeout=60, env={**os.environ, **MPI_ENV})
    assert done.returncode == 2
    assert done.stderr.count("megadict: ") == 1 and "absent.ini" in done.stderr
