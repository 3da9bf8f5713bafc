"""Dead latents that start anew, as a user meets it: every mesh draws alike, and a run that stops
around the resampling goes on as if it had not."""

import json
import signal

import numpy as np
import pytest
from training import (
    mesh_words,
    metrics,
    run,
    same_bits,
    start,
    steps_logged,
    synth,
    train_words,
    weights,
)

MESHES = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2)]
STEPS = 60
# A rate that kills most latents.
KILLS = {"model__n_latents": 301, "data__tokens": 101 * STEPS, "optim__lr": "3e-2",
         "dead__window_tokens": 1000, "dead__auxk_alpha": 0, "dead__resample_rows": 3000}
RESAMPLES = {**KILLS, "dead__resample_steps": "20,40"}


@pytest.fixture(scope="module")
def data(megadict_bin, tmp_path_factory):
    return synth(megadict_bin, tmp_path_factory.mktemp("data") / "acts")


def whole(folder):
    """Name -> the tensor of all parts; b_dec and its moments are the same in each."""
    return {name: parts[0] if name.endswith("b_dec") else np.concatenate(parts)
            for name, parts in weights(folder).items()}


def resampled(run_dir):
    return [(line["step"], line["resampled"], line["resample/distinct_rows"])
            for line in metrics(run_dir) if "resampled" in line]


@pytest.mark.parametrize("activation", ["topk", "relu", "batchtopk"])
def test_every_mesh_starts_the_same_latents_anew(megadict_bin, data, tmp_path, activation):
    """From one checkpoint on, in deterministic mode: the resampling and what is learnt after it."""
    fields = {**RESAMPLES, "model__activation": activation, "run__deterministic": "true",
              "checkpoint__every_steps": 20, "checkpoint__keep": 9, "optim__ema": 0.9}
    if activation == "relu":
        fields.update(model__l1_coefficient=3, model__l1_warmup_steps=0)
    first = tmp_path / "first"
    done = run(megadict_bin, train_words(data, first, **fields))
    assert done.returncode == 0, done.stderr
    assert [step for step, latents, rows in resampled(first) if latents > 0 and rows > 1][:1], \
        resampled(first)
    for shape in MESHES[1:]:
        out = tmp_path / f"{shape[0]}x{shape[1]}"
        words = train_words(data, out, **fields, **mesh_words(shape),
                            run__resume=first / "checkpoints" / "step_000000020")
        done = run(megadict_bin, words, ranks=shape[0] * shape[1])
        assert done.returncode == 0, done.stderr
        assert resampled(out) == resampled(first), shape
        mine, theirs = whole(out / "final"), whole(first / "final")
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert np.array_equal(value, theirs[name]), (shape, name)


def test_without_deterministic_mode_every_mesh_draws_alike(megadict_bin, data, tmp_path):
    fields = {**KILLS, "checkpoint__every_steps": 20, "checkpoint__keep": 9}
    first = tmp_path / "first"
    assert run(megadict_bin, train_words(data, first, **fields)).returncode == 0
    lines = []
    for shape in MESHES:
        out = tmp_path / f"{shape[0]}x{shape[1]}"
        words = train_words(data, out, **{**fields, "dead__resample_steps": "20"},
                            **mesh_words(shape),
                            run__resume=first / "checkpoints" / "step_000000020")
        done = run(megadict_bin, words, ranks=shape[0] * shape[1])
        assert done.returncode == 0, done.stderr
        lines.append(resampled(out))
    assert lines[0][0][1] > 10
    assert all(line == lines[0] for line in lines)


@pytest.mark.parametrize("stop_at", [19, 20, 21])
def test_a_resume_at_the_resampling_gives_the_same_bits(megadict_bin, data, tmp_path, stop_at):
    whole_run, out = tmp_path / "whole", tmp_path / "again"
    fields = {**RESAMPLES, "dead__resample_warmup_steps": 5, "checkpoint__every_steps": 1,
              "checkpoint__keep": 99, "log__every_steps": 1, **mesh_words((1, 2))}
    done = run(megadict_bin, train_words(data, whole_run, **fields), ranks=2)
    assert done.returncode == 0, done.stderr
    rates = {line["step"]: line["lr"] for line in metrics(whole_run) if "lr" in line}
    assert rates[20] == pytest.approx(0.03)
    assert [rates[step] for step in range(21, 26)] == pytest.approx([.006, .012, .018, .024, .03])
    checkpoint = whole_run / "checkpoints" / f"step_{stop_at:09}"
    saved = json.loads((checkpoint / "state.json").read_text())
    assert saved.get("resampled_at") == (20 if stop_at > 20 else None)
    done = run(megadict_bin, train_words(data, out, **fields, run__resume=checkpoint), ranks=2)
    assert done.returncode == 0, done.stderr
    assert same_bits(whole_run / "final", out / "final")


def test_usr1_around_resamplings_loses_nothing(megadict_bin, data, tmp_path):
    """Every fourth step resamples: the signal falls into one, or beside it."""
    fields = {**KILLS, "data__tokens": 101 * 400, "dead__resample_steps": "every:4",
              "dead__resample_rows": 1000, "log__every_steps": 1, **mesh_words((1, 2))}
    whole_run, halves = tmp_path / "whole", tmp_path / "halves"
    done = run(megadict_bin, train_words(data, whole_run, **fields), ranks=2)
    assert done.returncode == 0, done.stderr
    words = train_words(data, halves, **fields, run__resume="auto")
    stops = 0
    for _ in range(20):
        process = start(megadict_bin, words, ranks=2)
        seen = 0
        for line in process.stdout:
            seen += "start anew" in line or "no dead latents" in line
            if seen == 20:
                process.send_signal(signal.SIGUSR1)
        process.wait(timeout=60)
        if process.returncode == 0:
            break
        assert process.returncode == 75, process.stderr.read()
        stops += 1
    assert process.returncode == 0 and stops > 0
    assert same_bits(whole_run / "final", halves / "final")
    assert resampled(halves) == resampled(whole_run)
    assert steps_logged(halves) == steps_logged(whole_run)


@pytest.mark.parametrize("fields, said", [
    ({"dead__resample_steps": "sometimes"}, "'sometimes' is no step"),
    ({"dead__resample_steps": "40,20"}, "20 comes after 40"),
    ({"dead__auxk_stratum": 5, "dead__k_aux": 6}, "dead.auxk_stratum = 5 is less than dead.k_aux = 6"),
])
def test_refusals_write_nothing(megadict_bin, data, tmp_path, fields, said):
    done = run(megadict_bin, train_words(data, tmp_path / "run", **fields))
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
