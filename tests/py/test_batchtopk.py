"""A dictionary trained with batchtopk, used: its threshold judges, is exported, and is not believed unread."""

import json

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file
from training import mesh_words, metrics, run, synth, train_words

FIELDS = {"model__activation": "batchtopk", "data__normalize": "unit_rms", "data__center": "true",
          "data__tokens": 101 * 300}  # fmt: skip


@pytest.fixture(scope="module")
def data(megadict_bin, tmp_path_factory):
    return synth(megadict_bin, tmp_path_factory.mktemp("data") / "acts")


@pytest.fixture(scope="module")
def trained(megadict_bin, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    done = run(megadict_bin, train_words(data, out, **FIELDS))
    assert done.returncode == 0, done.stderr
    return out


def state_of(run_dir):
    return json.loads((run_dir / "final" / "state.json").read_text())


def judged(binary, folder, data, out, ranks=1, **fields):
    words = ["eval", "--run.dir", folder, "--data.path", data, "--json", out]
    words += [word for name, value in fields.items() for word in (f"--{name.replace('__', '.')}", value)]
    done = run(binary, words, ranks=ranks)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def held_out_rows(data):
    rows = []
    for path in sorted((data / "eval").glob("*.h5")):
        with h5py.File(path) as file:
            rows.append(file["activations"][:].astype(np.float64))
    return np.concatenate(rows)


def by_formula(trained, data):
    """FVU and L0 of the held-out rows in fp64."""
    state = state_of(trained)
    t = {name: value.astype(np.float64) for name, value in
         load_file(next((trained / "final").glob("part_*.safetensors"))).items()}  # fmt: skip
    scale, x = state["normalize"]["scale"], held_out_rows(data)
    v = (scale * (x - t["normalize.mean"]) - t["b_dec"]) @ t["W_enc"].T + t["b_enc"]
    z = np.where(v > np.float32(state["threshold"]), v, 0)
    x_hat = (z @ t["W_dec"] + t["b_dec"]) / scale + t["normalize.mean"]
    return ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), (z > 0).sum(1).mean()


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 3), (2, 2)])
def test_eval_is_the_formula_on_every_mesh(megadict_bin, trained, data, tmp_path, shape):
    fvu, l0 = by_formula(trained, data)
    got = judged(megadict_bin, trained, data, tmp_path / "e.json", shape[0] * shape[1], **mesh_words(shape))
    assert got["fvu"] == pytest.approx(fvu, rel=1e-5)
    assert got["l0"] == pytest.approx(l0, rel=1e-9)
    assert l0 == pytest.approx(3, rel=0.05)  # model.k, on 1000 rows that no threshold was made from


def test_training_keeps_k_a_row_and_logs_its_threshold(trained):
    steps = [line for line in metrics(trained) if "lr" in line]
    assert all(line["l0"] == pytest.approx(3, abs=1e-3) for line in steps)
    assert steps[-1]["threshold"] > 0  # the running average


def test_a_short_run_ends_with_k_a_row_and_so_do_its_evaluations(megadict_bin, data, tmp_path):
    """Codes still grow: the running average is behind."""
    fields = {**FIELDS, "data__tokens": 101 * 80, "eval__every_steps": 20}
    done = run(megadict_bin, train_words(data, tmp_path / "run", **fields))
    assert done.returncode == 0, done.stderr
    assert "threshold " in done.stdout and "running average" in done.stdout
    held_out = [line["eval/l0"] for line in metrics(tmp_path / "run") if "eval/l0" in line]
    assert len(held_out) == 4 and held_out == pytest.approx([3] * 4, rel=0.05)  # 1000 rows
    training = tmp_path / "training"
    training.mkdir()
    for shard in data.glob("*.h5"):
        (training / shard.name).symlink_to(shard)
    l0 = judged(megadict_bin, tmp_path / "run", training, tmp_path / "e.json")["l0"]
    assert l0 == pytest.approx(3, rel=0.005)


def test_the_end_is_the_same_after_a_resume(megadict_bin, data, tmp_path):
    """Also from a checkpoint that was judged, which is then used as its evaluation says."""
    fields = {**FIELDS, "data__tokens": 101 * 20, "checkpoint__every_steps": 10, "checkpoint__keep": 9,
              "eval__every_steps": 10, "log__every_steps": 20}  # fmt: skip
    done = run(megadict_bin, train_words(data, tmp_path / "whole", **fields))
    assert done.returncode == 0, done.stderr
    half = tmp_path / "whole" / "checkpoints" / "step_000000010"
    done = run(megadict_bin, train_words(data, tmp_path / "half", **fields, run__resume=half))
    assert done.returncode == 0, done.stderr
    assert state_of(tmp_path / "half")["threshold"] == state_of(tmp_path / "whole")["threshold"]
    runs = [metrics(tmp_path / name) for name in ("whole", "half")]
    averages = [[line["threshold"] for line in lines if "threshold" in line][-1] for lines in runs]
    assert averages[0] == averages[1]
    logged = next(line for line in runs[0] if "eval/fvu" in line)
    again = judged(megadict_bin, half, data, tmp_path / "e.json")
    assert again["fvu"] == pytest.approx(logged["eval/fvu"], rel=1e-12)
    state = json.loads((half / "state.json").read_text())
    assert state["threshold"] != state["threshold_average"]


@pytest.mark.parametrize("shape", [(1, 2), (3, 2)])
def test_the_threshold_does_not_depend_on_the_mesh(megadict_bin, data, tmp_path, shape):
    few = {**FIELDS, "data__tokens": 101 * 3}
    thresholds = []
    for mesh in ((1, 1), shape):
        out = tmp_path / f"{mesh[0]}x{mesh[1]}"
        done = run(megadict_bin, train_words(data, out, **few, **mesh_words(mesh)), ranks=mesh[0] * mesh[1])
        assert done.returncode == 0, done.stderr
        thresholds.append(state_of(out)["threshold"])
    assert thresholds[1] == pytest.approx(thresholds[0], rel=1e-5)


@pytest.mark.parametrize("scale", ["unit", "trained"])
def test_the_export_is_the_same_dictionary(megadict_bin, trained, data, tmp_path, scale):
    sae_lens = pytest.importorskip("sae_lens")
    import torch

    out = tmp_path / "sae"
    done = run(megadict_bin, ["export", "--run.dir", trained, "--format", "saelens", "--out", out, "--scale", scale])
    assert done.returncode == 0, done.stderr
    ours = judged(megadict_bin, trained, data, tmp_path / "a.json")
    assert judged(megadict_bin, out, data, tmp_path / "b.json")["fvu"] == pytest.approx(ours["fvu"], rel=1e-5)
    sae = sae_lens.SAE.load_from_disk(out, device="cpu")
    assert sae.cfg.architecture() == "jumprelu" and sae.cfg.metadata.training_architecture == "batchtopk"
    x = torch.tensor(held_out_rows(data), dtype=torch.float32)
    with torch.no_grad():
        z = sae.encode(x)
        fvu = (x - sae.decode(z)).square().sum() / (x - x.mean(0)).square().sum()
    assert float(fvu) == pytest.approx(ours["fvu"], rel=1e-4)
    assert float((z > 0).sum(1).double().mean()) == pytest.approx(ours["l0"], rel=1e-4)


def test_sparsify_cannot_hold_it(megadict_bin, trained, tmp_path):
    done = run(megadict_bin, ["export", "--run.dir", trained, "--format", "sparsify", "--out", tmp_path / "x"])
    assert done.returncode == 2
    assert "cannot write activation 'batchtopk' as sparsify" in done.stderr and "--format saelens" in done.stderr


@pytest.mark.parametrize("value, part", [
    (None, "threshold is missing"), (-0.1, "threshold is -0.1; allowed: a number, 0 or more"),
    ("1", "threshold is \"1\"; allowed"), (1e39, "threshold is 1e+39; allowed"),
])  # fmt: skip
def test_a_threshold_that_cannot_be(megadict_bin, trained, data, tmp_path, value, part):
    folder = tmp_path / "final"
    folder.mkdir()
    for path in (trained / "final").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    state = state_of(trained)
    state["threshold"] = value
    if value is None:
        del state["threshold"]
    (folder / "state.json").write_text(json.dumps(state))
    done = run(megadict_bin, ["eval", "--run.dir", folder, "--data.path", data])
    assert done.returncode == 3 and part in done.stderr, done.stderr
