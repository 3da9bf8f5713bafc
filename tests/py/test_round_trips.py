"""Trained dictionaries exported from the command line and opened by the tools' own loaders."""

import json

import h5py
import numpy as np
import pytest
from training import run, train_words

torch = pytest.importorskip("torch")
from peer_loaders import load_llamascopium, load_saebench  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

D, N, ROWS = 24, 67, 256
MODEL, HOOK = "gpt2", "blocks.8.hook_resid_pre"
FIELDS = {
    "topk": {},
    "relu": {"model__l1_coefficient": 0.05},
    "batchtopk": {},
    "jumprelu": {"model__l0_target": 3, "model__l1_warmup_steps": 20, "model__jumprelu_bandwidth": 0.1,
                 "model__jumprelu_threshold": 0.05},
    "gated": {"model__l1_coefficient": 0.4, "model__l1_warmup_steps": 20},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(megadict_bin, tmp_path_factory):
    """Rows about a mean, as an .npy file knows them, and their shards."""
    folder = tmp_path_factory.mktemp("rows")
    draw = np.random.default_rng(9)
    atoms, codes = draw.normal(size=(N, D)), draw.exponential(size=(4096, N)) * (draw.random((4096, N)) < 3 / N)
    x = (3 * codes @ atoms + draw.normal(size=D) + 0.05 * draw.normal(size=(4096, D))).astype("f4")
    np.save(folder / "x.npy", x)
    words = ["data", "import", "--from", folder / "x.npy", "--out", folder / "acts", "--eval_fraction", 0,
             "--model", MODEL, "--hook", HOOK, "--layer", 8]  # fmt: skip
    done = run(megadict_bin, words)
    assert done.returncode == 0, done.stderr
    return folder / "acts", torch.from_numpy(x[:ROWS])


@pytest.fixture(scope="module", params=FIELDS)
def trained(request, megadict_bin, data, tmp_path_factory):
    """activation, run folder."""
    out = tmp_path_factory.mktemp("trained") / "run"
    fields = {"model__activation": request.param, "data__normalize": "sqrt_d", "data__center": "true",
              "data__tokens": 101 * 200, **FIELDS[request.param]}  # fmt: skip
    done = run(megadict_bin, train_words(data[0], out, **fields))
    assert done.returncode == 0, done.stderr
    return request.param, out


def natively(binary, run_dir, data, out):
    """Codes of the first rows as `megadict encode` writes them (in the data's units, as --scale unit
    makes them), their reconstruction in fp64, and the scale."""
    done = run(binary, ["encode", "--run.dir", run_dir, "--data.path", data, "--out", out, "--eval.tokens", ROWS])
    assert done.returncode == 0, done.stderr
    with h5py.File(out) as file:
        row_ptr, indices, values = (file[name][:] for name in ("row_ptr", "indices", "values"))
    codes = torch.zeros(ROWS, N, dtype=torch.float64)
    row = np.repeat(np.arange(ROWS), np.diff(row_ptr.astype("i8")))
    codes[row, indices.astype("i8")] = torch.from_numpy(values).double()
    t = {name: value.double() for name, value in
         load_file(next((run_dir / "final").glob("part_*.safetensors"))).items()}  # fmt: skip
    scale = json.loads((run_dir / "final" / "state.json").read_text())["normalize"]["scale"]
    return codes, codes @ t["W_dec"] + t["b_dec"] / scale + t["normalize.mean"], scale


def exported(binary, run_dir, format_name, scale, out):
    done = run(binary, ["export", "--run.dir", run_dir, "--format", format_name, "--scale", scale, "--out", out])
    assert done.returncode == 0, done.stderr
    return out


def expect_same(sae, x, codes, x_hat):
    with torch.no_grad():
        got = sae.encode(x)
        got_x_hat = sae.decode(got)
    assert 0 < (codes > 0).sum() < codes.numel()
    assert torch.equal(got > 0, codes > 0), "another support"
    assert (got - codes).abs().max() < 1e-5 * codes.abs().max()
    assert (got_x_hat - x_hat).abs().max() < 1e-5 * x_hat.abs().max()


@pytest.mark.parametrize("scale", ["unit", "trained"])
def test_llamascopium_opens_what_was_trained(megadict_bin, data, trained, tmp_path, scale):
    activation, run_dir = trained
    sae = load_llamascopium(exported(megadict_bin, run_dir, "openmoss", scale, tmp_path / "moss"))
    assert sae.cfg.hook_point_in == HOOK and sae.cfg.d_sae == N
    codes, x_hat, factor = natively(megadict_bin, run_dir, data[0], tmp_path / "codes.h5")
    expect_same(sae, data[1], codes if scale == "unit" else codes * factor, x_hat)


def test_saebench_opens_what_was_trained(megadict_bin, data, trained, tmp_path, monkeypatch):
    activation, run_dir = trained
    folder = exported(megadict_bin, run_dir, "dictionary_learning", "unit", tmp_path / "bench")
    sae = load_saebench(monkeypatch, folder, activation, MODEL, layer=8)
    codes, x_hat, _ = natively(megadict_bin, run_dir, data[0], tmp_path / "codes.h5")
    expect_same(sae, data[1], codes, x_hat)
