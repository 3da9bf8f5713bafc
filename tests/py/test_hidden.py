"""Dictionaries with hidden layers before the latents (mlp, deep) and behind them, from the command line."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_batchtopk import held_out_rows
from training import held_out_fvu, mesh_words, metrics, run, same_bits, synth, train_words

RELU = {"model__activation": "relu", "model__l1_coefficient": 0.1, "model__l1_warmup_steps": 20}
KINDS = {
    "mlp": {**RELU, "model__encoder": "mlp", "model__hidden": "40,17"},
    "mlp_topk": {"model__encoder": "mlp", "model__hidden": "33"},
    "deep": {**RELU, "model__encoder": "deep"},
    "deep_deep": {**RELU, "model__encoder": "deep", "model__hidden": "24,24", "model__decoder": "deep",
                  "model__decoder_norm": "true"},
    "linear_deep": {**RELU, "model__decoder": "deep"},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(megadict_bin, tmp_path_factory):
    return synth(megadict_bin, tmp_path_factory.mktemp("data") / "acts")


def train(binary, data, out, kind, shape=(1, 1), **more):
    fields = {"data__tokens": 101 * 150, **KINDS[kind], **mesh_words(shape), **more}
    done = run(binary, train_words(data, out, **fields), ranks=shape[0] * shape[1])
    assert done.returncode == 0, done.stderr
    return done


def normed(x, gain, shift):
    centred = x - x.mean(1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * gain + shift


def fvu_by_the_formula(data, out):
    """From the files alone, in fp64."""
    files = load_file(next((out / "final").glob("part_*.safetensors")))
    t = {name: value.astype(np.float64) for name, value in files.items()}
    state = json.loads((out / "final" / "state.json").read_text())
    model, x = state["model"], held_out_rows(data).astype(np.float64)
    s = x * state["normalize"]["scale"]
    r = s
    for i in range(sum(name.startswith("front.") and name.endswith(".weight") for name in t)):
        v = r @ t[f"front.{i}.weight"].T + t[f"front.{i}.bias"]
        deep = model["encoder"] == "deep"
        r = normed(np.tanh(v), t[f"front.{i}.norm.gain"], t[f"front.{i}.norm.shift"]) if deep else np.maximum(v, 0)
    seen = {"linear": lambda: s - t["b_dec"], "mlp": lambda: r, "deep": lambda: r + s}[model["encoder"]]()
    z = np.maximum(seen @ t["W_enc"].T + t["b_enc"], 0)
    if model["activation"] == "topk":
        z = np.where(z >= np.sort(z, 1)[:, -model["k"]][:, None], z, 0)
    h = z @ t["W_dec"]
    if model["decoder"] == "deep":
        h = np.maximum(h + t["back.bias"], 0)
        h = normed(h, t["back.norm.gain"], t["back.norm.shift"]) if model["decoder_norm"] else h
        h = h @ t["back.weight"]
    x_hat = (h + t["b_dec"]) / state["normalize"]["scale"]
    return ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_the_files_say_all(megadict_bin, data, tmp_path, kind):
    train(megadict_bin, data, tmp_path / "run", kind)
    lines = [line for line in metrics(tmp_path / "run") if "fvu" in line]
    assert lines[-1]["fvu"] < 0.7 * lines[0]["fvu"]
    assert fvu_by_the_formula(data, tmp_path / "run") == pytest.approx(held_out_fvu(tmp_path / "run"), rel=2e-5)


@pytest.mark.parametrize("kind", ["mlp_topk", "deep_deep"])
def test_every_mesh_learns_and_judges_alike(megadict_bin, data, tmp_path, kind):
    fvu = {}
    for shape in [(1, 1), (1, 2), (3, 1), (2, 3)]:
        out = tmp_path / "x".join(map(str, shape))
        train(megadict_bin, data, out, kind, shape)
        fvu[shape] = held_out_fvu(out)
    assert max(fvu.values()) / min(fvu.values()) < 1.005
    words = ["eval", "--run.dir", tmp_path / "2x3", "--data.path", data, "--json"]
    reports = []
    for ranks in (1, 3, 4):
        done = run(megadict_bin, [*words, tmp_path / f"{ranks}.json"], ranks=ranks)
        assert done.returncode == 0, done.stderr
        reports.append(json.loads((tmp_path / f"{ranks}.json").read_text()))
    assert reports[0]["fvu"] == pytest.approx(reports[1]["fvu"], rel=1e-6)
    assert reports[0]["fvu"] == pytest.approx(reports[2]["fvu"], rel=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "deep_deep"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2)])
def test_a_run_in_two_parts_has_the_same_bits(megadict_bin, data, tmp_path, kind, shape):
    fixed = {"optim__decay_fraction": 0, "optim__warmup_steps": 5, "optim__ema": 0.9, "dead__window_tokens": 3000,
             "run__threads": 1}  # fmt: skip
    train(megadict_bin, data, tmp_path / "whole", kind, shape, **fixed)
    train(megadict_bin, data, tmp_path / "parts", kind, shape, **{**fixed, "data__tokens": 101 * 90})
    train(megadict_bin, data, tmp_path / "parts", kind, shape, run__resume="auto", **fixed)
    assert same_bits(tmp_path / "whole" / "final", tmp_path / "parts" / "final")


def test_another_run_goes_on_from_its_weights(megadict_bin, data, tmp_path):
    train(megadict_bin, data, tmp_path / "a", "deep_deep")
    train(megadict_bin, data, tmp_path / "b", "deep_deep", (1, 3), model__init_from=tmp_path / "a")
    first = next(line for line in metrics(tmp_path / "b") if "fvu" in line)
    assert first["fvu"] < 1.5 * held_out_fvu(tmp_path / "a")
    words = train_words(data, tmp_path / "c", **{**KINDS["deep"], "model__init_from": tmp_path / "a"})
    done = run(megadict_bin, words)
    assert done.returncode == 2 and "decoder" in done.stderr


def test_no_other_tool_holds_hidden_layers(megadict_bin, data, tmp_path):
    train(megadict_bin, data, tmp_path / "run", "deep", data__tokens=101 * 5)
    words = ["export", "--run.dir", tmp_path / "run", "--format", "saelens", "--out", tmp_path / "out"]
    done = run(megadict_bin, words)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1) and "hidden layers" in done.stderr
    assert not (tmp_path / "out").exists()


def test_pursuits_stand_beside_a_deep_encoder_not_behind_a_deep_decoder(megadict_bin, data, tmp_path):
    for kind, code in [("deep", 0), ("linear_deep", 2)]:
        train(megadict_bin, data, tmp_path / kind, kind)
        out = tmp_path / f"{kind}.json"
        words = ["eval", "--run.dir", tmp_path / kind, "--data.path", data, "--eval.inference", "omp,refit",
                 "--eval.inference_rows", 64, "--json", out]  # fmt: skip
        done = run(megadict_bin, words)
        assert done.returncode == code, done.stderr
        if code == 0:
            methods = {one["method"]: one["fvu"] for one in json.loads(out.read_text())["inference"]["methods"]}
            assert methods["refit"] <= methods["encoder"]
        else:
            assert "model.decoder = deep" in done.stderr


def test_rows_in_front_of_a_deep_decoders_layer_are_compared_with_nothing(megadict_bin, data, tmp_path):
    folder = tmp_path / "run"
    train(megadict_bin, data, folder, "linear_deep")
    for words in (["eval", "--run.dir", folder, "--data.path", data, "--eval.truth", data], ["compare", folder, folder]):
        done = run(megadict_bin, words)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stdout + done.stderr
        assert "no directions of the data" in done.stderr


@pytest.mark.parametrize(("fields", "said"), [
    ({"model.encoder": "mlp"}, "as 1024 or 256,256"),
    ({"model.encoder": "mlp", "model.hidden": "40,,3"}, "widths from 1 to"),
    ({"model.encoder": "mlp", "model.hidden": "40,"}, "widths from 1 to"),
    ({"model.encoder": "mlp", "model.hidden": "-4"}, "widths from 1 to"),
    ({"model.encoder": "deep", "model.hidden": "25"}, "'24' or '24,24'"),
    ({"model.hidden": "24"}, "which has no hidden layer"),
    ({"model.decoder_norm": "true"}, "it is for deep"),
    ({"model.encoder": "mlp", "model.hidden": "24", "model.decoder": "tied"}, "as wide as the data's"),
    ({"model.encoder": "deep", "run.deterministic": "true"}, "run.deterministic"),
    ({"model.encoder": "deep", "mesh.exchange": "tokens"}, "mesh.exchange = tokens"),
    ({"model.decoder": "deep", "model.activation": "gated"}, "model.activation = gated"),
    ({"model.decoder": "deep", "model.matryoshka": "8"}, "model.matryoshka"),
    ({"model.decoder": "deep", "dead.auxk_alpha": "0.1"}, "dead.auxk_alpha = 0.1"),
    ({"model.decoder": "deep", "dead.resample_steps": "every:20"}, "dead.resample_steps"),
    ({"optim.hidden_decay": "2"}, "optim.hidden_decay"),
    ({"model.decoder": "deep", "eval.truth": "truth"}, "eval.truth"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(megadict_bin, data, tmp_path, fields, said):
    words = train_words(data, tmp_path / "run")
    done = run(megadict_bin, [*words, *[word for name, value in fields.items() for word in (f"--{name}", value)]])
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert said in done.stderr and not (tmp_path / "run").exists()
