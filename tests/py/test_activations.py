"""Dictionaries with thresholds of their own (jumprelu) and nested ones (matryoshka), from the command line."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_batchtopk import held_out_rows
from training import held_out_fvu, mesh_words, metrics, run, same_bits, synth, train_words

COMMON = {"data__normalize": "unit_rms", "data__center": "true", "data__tokens": 101 * 200}
JUMPRELU = {**COMMON, "model__activation": "jumprelu", "model__l0_target": 3, "model__l1_warmup_steps": 20,
            "model__jumprelu_bandwidth": 0.1, "model__jumprelu_threshold": 0.05}  # fmt: skip
MATRYOSHKA = {**COMMON, "model__activation": "batchtopk", "model__matryoshka": "8,0.5"}
KINDS = {"jumprelu": JUMPRELU, "matryoshka": MATRYOSHKA}


@pytest.fixture(scope="module")
def data(megadict_bin, tmp_path_factory):
    return synth(megadict_bin, tmp_path_factory.mktemp("data") / "acts")


def train(binary, data, out, kind, ranks=1, **more):
    done = run(binary, train_words(data, out, **{**KINDS[kind], **more}), ranks=ranks)
    assert done.returncode == 0, done.stderr
    return done


def tensors_of(run_dir):
    return {name: value.astype(np.float64) for name, value in
            load_file(next((run_dir / "final").glob("part_*.safetensors"))).items()}  # fmt: skip


def test_jumprelu_learns_and_arrives_at_its_l0(megadict_bin, data, tmp_path):
    out = tmp_path / "run"
    train(megadict_bin, data, out, "jumprelu", data__tokens=101 * 600)
    lines = [line for line in metrics(out) if "fvu" in line]
    assert lines[-1]["fvu"] < 0.6 * lines[0]["fvu"]
    assert lines[-1]["l0"] == pytest.approx(3, rel=0.25) and lines[0]["l0"] > 6
    # The held-out score is that of the formula in fp64.
    t = tensors_of(out)
    assert t["threshold"].shape == t["b_enc"].shape and len(set(t["threshold"])) > 10
    scale, x = json.loads((out / "final" / "state.json").read_text())["normalize"]["scale"], held_out_rows(data)
    v = (scale * (x - t["normalize.mean"]) - t["b_dec"]) @ t["W_enc"].T + t["b_enc"]
    z = np.where(v > t["threshold"], v, 0)
    x_hat = (z @ t["W_dec"] + t["b_dec"]) / scale + t["normalize.mean"]
    fvu = ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert held_out_fvu(out) == pytest.approx(fvu, rel=1e-4)


def test_every_prefix_of_a_matryoshka_learns(megadict_bin, data, tmp_path):
    out = tmp_path / "run"
    done = train(megadict_bin, data, out, "matryoshka")
    assert "prefix 1: 8 latents, weight 0.3333" in done.stdout + done.stderr
    lines = [line for line in metrics(out) if "fvu" in line]
    first, last = ([line[f"matryoshka/fvu_{p}"] for p in (1, 2, 3)] for line in (lines[0], lines[-1]))
    assert all(after < before for before, after in zip(first, last))
    assert last[0] > last[1] > last[2] == lines[-1]["fvu"]
    assert lines[-1]["losses/overall_loss"] >= sum(last) / 3 * 0.999


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 1), (1, 3), (2, 2)])
def test_a_run_in_two_parts_on_other_meshes_has_the_same_bits(megadict_bin, data, tmp_path, kind, shape):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fixed = {"run__deterministic": "true", "optim__decay_fraction": 0, "optim__warmup_steps": 5,
             "dead__window_tokens": 3000, "optim__ema": 0.9}  # fmt: skip
    train(megadict_bin, data, whole, kind, **fixed)
    short = {**KINDS[kind], **fixed, "data__tokens": 101 * 90}
    ranks = shape[0] * shape[1]
    done = run(megadict_bin, train_words(data, parts, **short, **mesh_words(shape)), ranks=ranks)
    assert done.returncode == 0, done.stderr
    train(megadict_bin, data, parts, kind, run__resume="auto", **fixed)
    assert same_bits(whole / "final", parts / "final")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model.matryoshka": "50,20"}, "a prefix of 20 latents after one of 50"),
        ({"model.matryoshka": "100"}, "allowed: 1 to 67"),
        ({"model.matryoshka_weights": "1,1"}, "there are no prefixes"),
        ({"model.activation": "jumprelu", "kernels.encode": "screen_int8"}, "it is for topk and batchtopk"),
        ({"model.jumprelu_bandwidth": "0"}, "model.jumprelu_bandwidth"),
        ({"model.jumprelu_threshold": "-1"}, "model.jumprelu_threshold"),
    ],
)
def test_what_means_nothing_is_refused(megadict_bin, data, tmp_path, fields, said):
    words = train_words(data, tmp_path / "run")
    done = run(megadict_bin, [*words, *[word for name, value in fields.items() for word in (f"--{name}", value)]])
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_an_export_can_be_calibrated(megadict_bin, data, tmp_path, activation):
    """The exported threshold gives k on the rows it was set on, by the formula in fp64."""
    out, sae = tmp_path / "run", tmp_path / "sae"
    done = run(megadict_bin, train_words(data, out, **COMMON, model__activation=activation))
    assert done.returncode == 0, done.stderr
    words = ["export", "--run.dir", out, "--format", "saelens", "--out", sae, "--calibrate", data]
    done = run(megadict_bin, words)
    assert done.returncode == 0, done.stderr
    x, t = held_out_rows(data), load_file(sae / "sae_weights.safetensors")
    assert f"on {len(x)} rows" in done.stdout + done.stderr and "beside k 3" in done.stdout + done.stderr
    assert json.loads((sae / "cfg.json").read_text())["architecture"] == "jumprelu"
    v = (x - t["b_dec"]) @ t["W_enc"].astype(np.float64) + t["b_enc"]
    assert (v > t["threshold"]).sum(1).mean() == pytest.approx(3, abs=2e-3)


def test_only_what_has_a_k_is_calibrated(megadict_bin, data, tmp_path):
    out = tmp_path / "run"
    train(megadict_bin, data, out, "jumprelu", data__tokens=101 * 2)
    words = ["export", "--run.dir", out, "--format", "saelens", "--out", tmp_path / "sae", "--calibrate", data]
    done = run(megadict_bin, words)
    assert done.returncode == 2 and "has no k" in done.stderr
    assert not (tmp_path / "sae").exists()
