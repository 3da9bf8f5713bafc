"""Dictionaries with thresholds (jumprelu) or gates (gated) of their own and nested ones (matryoshka), from the
command line."""

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
GATED = {**COMMON, "model__activation": "gated", "model__l1_coefficient": 0.4, "model__l1_warmup_steps": 20}
KINDS = {"jumprelu": JUMPRELU, "matryoshka": MATRYOSHKA, "gated": GATED}


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


def codes_of_run(out, x):
    """Scale, codes and reconstructions of rows, by the formula in fp64."""
    t, state = tensors_of(out), json.loads((out / "final" / "state.json").read_text())
    scale = state["normalize"]["scale"]
    y = (scale * (x - t["normalize.mean"]) - t["b_dec"]) @ t["W_enc"].T
    v = y + t["b_enc"]
    if state["model"]["activation"] == "gated":
        z = np.where(v > 0, np.maximum(np.exp(t["r_mag"]) * y + t["b_mag"], 0), 0)
    else:
        z = np.where(v > t["threshold"], v, 0)
    return scale, z, (z @ t["W_dec"] + t["b_dec"]) / scale + t["normalize.mean"]


def fvu_by_the_formula(data, out):
    x = held_out_rows(data)
    return ((x - codes_of_run(out, x)[2]) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()


def test_jumprelu_learns_and_arrives_at_its_l0(megadict_bin, data, tmp_path):
    out = tmp_path / "run"
    train(megadict_bin, data, out, "jumprelu", data__tokens=101 * 600)
    lines = [line for line in metrics(out) if "fvu" in line]
    assert lines[-1]["fvu"] < 0.5 * lines[0]["fvu"]
    assert lines[-1]["l0"] == pytest.approx(3, rel=0.25) and lines[0]["l0"] > 6
    t = tensors_of(out)
    assert t["threshold"].shape == t["b_enc"].shape and len(set(t["threshold"])) > 10
    assert held_out_fvu(out) == pytest.approx(fvu_by_the_formula(data, out), rel=1e-4)


def test_dead_jumprelus_are_pulled_to_their_thresholds(megadict_bin, data, tmp_path):
    """From thresholds that few rows reach."""
    high = {"model__jumprelu_threshold": 0.6, "model__l0_coefficient": 0, "dead__window_tokens": 1010,
            "dead__auxk_alpha": 0, "data__tokens": 101 * 300}  # fmt: skip
    dead = []
    for coefficient in (0, 0.01):
        out = tmp_path / str(coefficient)
        train(megadict_bin, data, out, "jumprelu", dead__preact_coefficient=coefficient, **high)
        dead.append([line["sparsity/dead_features"] for line in metrics(out) if "fvu" in line][-1])
    assert dead[0] > 20 and dead[1] < dead[0] / 2


def test_gated_learns_and_its_gates_close(megadict_bin, data, tmp_path):
    out = tmp_path / "run"
    train(megadict_bin, data, out, "gated", data__tokens=101 * 600)
    lines = [line for line in metrics(out) if "fvu" in line]
    first, last = lines[0], lines[-1]
    assert last["fvu"] < 0.5 * first["fvu"] and last["l0"] < 0.5 * first["l0"]
    # Gates pay for their size and reconstruct worse; magnitudes do not.
    assert last["losses/gate_loss"] > last["fvu"]
    assert json.loads((out / "config.json").read_text())["optim.beta1"]["value"] == 0
    t = tensors_of(out)
    assert all(len(set(t[name])) > 10 for name in ("b_enc", "r_mag", "b_mag"))
    assert held_out_fvu(out) == pytest.approx(fvu_by_the_formula(data, out), rel=1e-4)


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
        ({"model.jumprelu_log": "true"}, "allowed: jumprelu, at least 1.2e-38"),
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


@pytest.fixture(scope="module", params=["jumprelu", "gated"])
def trained(request, megadict_bin, data, tmp_path_factory):
    """A run with parameters of each latent, and which kind it is."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    train(megadict_bin, data, out, request.param)
    return request.param, out


@pytest.mark.parametrize("name", ["saelens", "dictionary_learning"])
def test_an_export_computes_the_same_in_its_tool(megadict_bin, data, trained, tmp_path, name):
    torch = pytest.importorskip("torch")
    kind, out = trained
    sae = tmp_path / "sae"
    done = run(megadict_bin, ["export", "--run.dir", out, "--format", name, "--out", sae])
    assert done.returncode == 0, done.stderr
    if name == "saelens":
        from sae_lens import SAE

        theirs = SAE.load_from_disk(sae, device="cpu")
        assert theirs.cfg.architecture() == kind
    else:
        from dictionary_learning.utils import load_dictionary

        theirs, _ = load_dictionary(str(sae), "cpu")
        classes = {"jumprelu": "JumpReluAutoEncoder", "gated": "GatedAutoEncoder"}
        assert type(theirs).__name__ == classes[kind]
    x = held_out_rows(data)
    scale, z, x_hat = codes_of_run(out, x)
    with torch.no_grad():
        codes = theirs.encode(torch.tensor(x, dtype=torch.float32))
        decoded = theirs.decode(codes).numpy()
    assert 0 < (z > 0).sum() < z.size / 2
    assert ((codes.numpy() > 0) != (z > 0)).sum() <= 2  # at a threshold fp32 may decide otherwise
    same = ((codes.numpy() > 0) == (z > 0)).all(1)
    assert np.abs(codes.numpy() * scale - z)[same].max() < 1e-4 * z.max()
    assert np.abs(decoded - x_hat)[same].max() < 1e-4 * np.abs(x_hat).max()


def test_an_export_scores_the_same_on_every_mesh(megadict_bin, data, trained, tmp_path):
    out, sae = trained[1], tmp_path / "sae"
    done = run(megadict_bin, ["export", "--run.dir", out, "--format", "saelens", "--out", sae])
    assert done.returncode == 0, done.stderr
    scores, codes = [], []
    for folder in (out, sae):
        for ranks in (1, 4):
            name = tmp_path / f"{folder.name}_{ranks}"
            for words in (["eval", "--json", f"{name}.json"], ["encode", "--out", f"{name}.h5"]):
                done = run(megadict_bin, [*words, "--run.dir", folder, "--data.path", data], ranks=ranks)
                assert done.returncode == 0, done.stderr
            scores.append(json.loads(Path(f"{name}.json").read_text()))
            with h5py.File(f"{name}.h5") as file:
                codes.append({name: file[name][:] for name in ("row_ptr", "indices", "values")})
    for one, four in ((0, 1), (2, 3)):
        assert scores[one]["l0"] == scores[four]["l0"]
        assert scores[one]["fvu"] == pytest.approx(scores[four]["fvu"], rel=1e-12)
        assert all((codes[one][name] == codes[four][name]).all() for name in codes[one])
    assert scores[2]["l0"] == pytest.approx(scores[0]["l0"], rel=1e-3)
    assert scores[2]["fvu"] == pytest.approx(scores[0]["fvu"], rel=1e-4)


def test_an_export_read_by_import_is_a_checkpoint(megadict_bin, data, trained, tmp_path):
    kind, out = trained
    sae, back = tmp_path / "sae", tmp_path / "back"
    for words in (["export", "--run.dir", out, "--format", "saelens", "--out", sae],
                  ["import", "--from", sae, "--out", back]):
        done = run(megadict_bin, words)
        assert done.returncode == 0, done.stderr
    ours, theirs = load_file(next(back.glob("part_*.safetensors"))), load_file(sae / "sae_weights.safetensors")
    same = {"jumprelu": {"threshold": "threshold"}, "gated": {"b_enc": "b_gate", "r_mag": "r_mag", "b_mag": "b_mag"}}
    assert all((ours[mine] == theirs[its]).all() for mine, its in same[kind].items())
    assert json.loads((back / "state.json").read_text())["model"]["activation"] == kind


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
