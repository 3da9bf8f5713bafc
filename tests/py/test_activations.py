"""Dictionaries with thresholds of their own (jumprelu) and nested ones (matryoshka), from the command line."""

import json
from pathlib import Path

import h5py
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
    assert lines[-1]["fvu"] < 0.5 * lines[0]["fvu"]
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


@pytest.fixture(scope="module")
def trained_jumprelu(megadict_bin, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("jumprelu") / "run"
    train(megadict_bin, data, out, "jumprelu")
    return out


def codes_of_run(out, x):
    """Native codes and reconstructions of rows, in fp64."""
    t = tensors_of(out)
    scale = json.loads((out / "final" / "state.json").read_text())["normalize"]["scale"]
    v = (scale * (x - t["normalize.mean"]) - t["b_dec"]) @ t["W_enc"].T + t["b_enc"]
    z = np.where(v > t["threshold"], v, 0)
    return scale, z, (z @ t["W_dec"] + t["b_dec"]) / scale + t["normalize.mean"]


@pytest.mark.parametrize("name", ["saelens", "dictionary_learning"])
def test_an_exported_jumprelu_computes_the_same_in_its_tool(megadict_bin, data, trained_jumprelu, tmp_path, name):
    torch = pytest.importorskip("torch")
    sae = tmp_path / "sae"
    done = run(megadict_bin, ["export", "--run.dir", trained_jumprelu, "--format", name, "--out", sae])
    assert done.returncode == 0, done.stderr
    if name == "saelens":
        from sae_lens import SAE

        theirs = SAE.load_from_disk(sae, device="cpu")
        assert theirs.cfg.architecture() == "jumprelu"
    else:
        from dictionary_learning.utils import load_dictionary

        theirs, _ = load_dictionary(str(sae), "cpu")
        assert type(theirs).__name__ == "JumpReluAutoEncoder"
    x = held_out_rows(data)
    scale, z, x_hat = codes_of_run(trained_jumprelu, x)
    with torch.no_grad():
        codes = theirs.encode(torch.tensor(x, dtype=torch.float32))
        decoded = theirs.decode(codes).numpy()
    assert 0 < (z > 0).sum() < z.size / 4
    assert ((codes.numpy() > 0) != (z > 0)).sum() <= 2  # at a threshold fp32 may decide otherwise
    same = ((codes.numpy() > 0) == (z > 0)).all(1)
    assert np.abs(codes.numpy() * scale - z)[same].max() < 1e-4 * z.max()
    assert np.abs(decoded - x_hat)[same].max() < 1e-4 * np.abs(x_hat).max()


def test_an_exported_jumprelu_scores_the_same_on_every_mesh(megadict_bin, data, trained_jumprelu, tmp_path):
    sae = tmp_path / "sae"
    done = run(megadict_bin, ["export", "--run.dir", trained_jumprelu, "--format", "saelens", "--out", sae])
    assert done.returncode == 0, done.stderr
    scores, codes = [], []
    for folder in (trained_jumprelu, sae):
        for ranks in (1, 4):
            out = tmp_path / f"{folder.name}_{ranks}"
            for words in (["eval", "--json", f"{out}.json"], ["encode", "--out", f"{out}.h5"]):
                done = run(megadict_bin, [*words, "--run.dir", folder, "--data.path", data], ranks=ranks)
                assert done.returncode == 0, done.stderr
            scores.append(json.loads(Path(f"{out}.json").read_text()))
            with h5py.File(f"{out}.h5") as file:
                codes.append({name: file[name][:] for name in ("row_ptr", "indices", "values")})
    for one, four in ((0, 1), (2, 3)):
        assert scores[one]["l0"] == scores[four]["l0"]
        assert scores[one]["fvu"] == pytest.approx(scores[four]["fvu"], rel=1e-12)
        assert all((codes[one][name] == codes[four][name]).all() for name in codes[one])
    assert scores[2]["l0"] == pytest.approx(scores[0]["l0"], rel=1e-3)
    assert scores[2]["fvu"] == pytest.approx(scores[0]["fvu"], rel=1e-4)


def test_a_jumprelu_of_another_tool_becomes_a_checkpoint(megadict_bin, data, trained_jumprelu, tmp_path):
    sae, back = tmp_path / "sae", tmp_path / "back"
    for words in (["export", "--run.dir", trained_jumprelu, "--format", "saelens", "--out", sae],
                  ["import", "--from", sae, "--out", back]):
        done = run(megadict_bin, words)
        assert done.returncode == 0, done.stderr
    ours, theirs = load_file(next(back.glob("part_*.safetensors"))), load_file(sae / "sae_weights.safetensors")
    assert (ours["threshold"] == theirs["threshold"]).all()
    assert json.loads((back / "state.json").read_text())["model"]["activation"] == "jumprelu"


def test_a_matryoshka_is_exported_as_what_it_computes(megadict_bin, data, tmp_path):
    """Prefixes are training's alone: SAELens gets a jumprelu with one threshold."""
    out, sae = tmp_path / "run", tmp_path / "sae"
    train(megadict_bin, data, out, "matryoshka")
    done = run(megadict_bin, ["export", "--run.dir", out, "--format", "saelens", "--out", sae])
    assert done.returncode == 0, done.stderr
    from sae_lens import SAE

    theirs = SAE.load_from_disk(sae, device="cpu")
    assert theirs.cfg.architecture() == "jumprelu" and len(set(theirs.threshold.tolist())) == 1
    done = run(megadict_bin, ["eval", "--run.dir", sae, "--data.path", data, "--json", tmp_path / "eval.json"])
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "eval.json").read_text())["fvu"] == pytest.approx(held_out_fvu(out), rel=1e-3)
