"""kernels.encode: the screened encode trains like the exact one, and `auto` is decided once."""

import json

import h5py
import numpy as np
import pytest
from training import held_out_fvu, mesh_words, metrics, run, same_bits, synth, train_words

BEST = 8192  # latents of a rank from which `auto` measures


@pytest.fixture(scope="module")
def data(megadict_bin, tmp_path_factory):
    return synth(megadict_bin, tmp_path_factory.mktemp("encode") / "acts")


@pytest.fixture(params=["screen_int8", "screen_bf16"])
def screen(request, need_screen):
    """A value of kernels.encode that this processor has the instructions for."""
    return need_screen(request.param)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 2), (1, 3)])
@pytest.mark.parametrize("optimiser", ["adam", "adam_b1_0"])
def test_a_screened_run_learns_the_same(megadict_bin, screen, data, tmp_path, shape, optimiser):
    scores = {}
    for encode in ("fp32", screen):
        words = train_words(data, tmp_path / encode, kernels__encode=encode, optim__name=optimiser,
                            **mesh_words(shape))  # fmt: skip
        done = run(megadict_bin, words, ranks=shape[0] * shape[1])
        assert done.returncode == 0, done.stderr
        scores[encode] = held_out_fvu(tmp_path / encode)
    assert scores[screen] == pytest.approx(scores["fp32"], rel=5e-3)
    lines = [line for line in metrics(tmp_path / screen) if "screen/missed" in line]
    assert lines and all(line["screen/missed"] == 0 for line in lines)
    assert not [line for line in metrics(tmp_path / "fp32") if "screen/missed" in line]


def test_a_screened_run_resumes_to_the_same_bits(megadict_bin, screen, data, tmp_path):
    more = {"kernels__encode": screen, "checkpoint__every_steps": 30, "checkpoint__keep": 9}
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert run(megadict_bin, train_words(data, whole, **more)).returncode == 0
    resume = {"run__resume": whole / "checkpoints" / "step_000000030"}
    done = run(megadict_bin, train_words(data, half, **more, **resume))
    assert done.returncode == 0, done.stderr
    assert same_bits(whole / "final", half / "final")
    assert screens_of(whole / "final") == screens_of(half / "final")


def screens_of(folder):
    return json.loads((folder / "state.json").read_text())["screen"]


def test_a_window_that_a_miss_widened_survives_a_resume(megadict_bin, screen, data, tmp_path):
    """Each rank's own on the mesh that wrote it, the widest on another; older checkpoints have none."""
    more = {"kernels__encode": screen, "checkpoint__every_steps": 5, "data__tokens": 101 * 10,
            "checkpoint__keep": 9}  # fmt: skip
    done = run(megadict_bin, train_words(data, tmp_path / "run", **more, **mesh_words((1, 2))), 2)
    assert done.returncode == 0, done.stderr
    half = tmp_path / "run" / "checkpoints" / "step_000000005"
    state = json.loads((half / "state.json").read_text())
    assert state["screen"]["windows"] == [6, 6] and min(state["screen"]["thresholds"]) > 0
    state["screen"]["windows"] = [7.5, 6]  # as a miss on rank 0 would have left it
    for name, saved, shape, windows in (("same", state["screen"], (1, 2), [7.5, 6]),
                                        ("other", state["screen"], (2, 1), [7.5, 7.5]),
                                        ("more", state["screen"], (2, 2), [7.5] * 4),
                                        ("old", None, (1, 2), [6, 6])):  # fmt: skip
        if saved is None:
            del state["screen"]
        if name == "more":  # says that a mesh wrote it of which it has not the parts
            state["mesh"] = "2x2"
        (half / "state.json").write_text(json.dumps(state))
        words = train_words(data, tmp_path / name, **more, **mesh_words(shape), run__resume=half)
        done = run(megadict_bin, words, shape[0] * shape[1])
        assert done.returncode == 0, done.stderr
        assert screens_of(tmp_path / name / "final")["windows"] == windows


def test_auto_is_measured_once_and_kept(megadict_bin, data, tmp_path):
    out = tmp_path / "run"
    more = {"model__n_latents": BEST, "checkpoint__every_steps": 4, "data__tokens": 101 * 4}
    done = run(megadict_bin, train_words(data, out, **more))
    assert done.returncode == 0, done.stderr
    assert "kernels.encode: " in done.stdout + done.stderr
    picked = json.loads((out / "config.json").read_text())["kernels.encode"]
    assert picked["source"] == "resolved" and picked["value"] in ("fp32", "screen_int8", "screen_bf16")
    more["data__tokens"] = 101 * 6
    done = run(megadict_bin, train_words(data, out, **more, run__resume="auto"))
    assert done.returncode == 0, done.stderr
    assert "rows/s measured" not in done.stdout + done.stderr
    assert json.loads((out / "config.json").read_text())["kernels.encode"]["value"] == picked["value"]


def test_a_small_dictionary_is_encoded_exactly(megadict_bin, data, tmp_path):
    assert run(megadict_bin, train_words(data, tmp_path / "run")).returncode == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["kernels.encode"] == {"value": "fp32", "source": "resolved"}


@pytest.mark.parametrize("fields, part", [
    ({"kernels__encode": "int8"}, "auto, fp32, screen_int8, screen_bf16"),
    ({"kernels__encode": "screen_int8", "model__activation": "relu"}, "it is for topk and batchtopk on a cpu"),
    ({"kernels__encode": "screen_bf16", "model__activation": "relu"}, "it is for topk and batchtopk on a cpu"),
    ({"kernels__encode": "screen_int8", "run__device": "cuda"}, "it is for topk and batchtopk on a cpu"),
])  # fmt: skip
def test_refusals(megadict_bin, data, tmp_path, fields, part):
    done = run(megadict_bin, train_words(data, tmp_path / "run", **fields))
    assert done.returncode == 2 and part in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


def write_rows(folder, rows):
    folder.mkdir()
    with h5py.File(folder / "0000.h5", "w") as shard:
        shard.create_dataset("activations", data=rows, chunks=(512, 24), fletcher32=True)
        shard.attrs.update(megadict_version="test", model="synthetic", hook="none", layer=0,
                           tokenizer="none", d_in=24, dtype="float32", rows=len(rows))  # fmt: skip
    return folder


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_end_a_screened_run_as_an_exact_one(megadict_bin, screen, tmp_path, bad):
    rows = np.random.default_rng(3).standard_normal((6000, 24)).astype(np.float32)
    rows[4321, 7] = bad
    folder = write_rows(tmp_path / "bad", rows)
    ends = []
    for encode in ("fp32", screen):
        words = train_words(folder, tmp_path / encode, kernels__encode=encode, data__tokens=6000)
        done = run(megadict_bin, words)
        ends.append((done.returncode, done.stderr.replace(encode, "")))
    assert ends[0][0] == 3 and "0000.h5" in ends[0][1], ends[0]
    assert ends[0] == ends[1]


def test_values_that_a_screen_cannot_hold(megadict_bin, screen, tmp_path):
    """Constant and huge columns, zero rows: the same codes as the exact encode's, or the same end."""
    random = np.random.default_rng(3)
    rows = random.standard_normal((6000, 24)).astype(np.float32)
    rows[:, 3] = 5.0
    rows[::7] = 0
    rows[::1001, 5] = 1e6
    folder = write_rows(tmp_path / "odd", rows)
    curves = {}
    for encode in ("fp32", screen):
        out = tmp_path / encode
        done = run(megadict_bin, train_words(folder, out, kernels__encode=encode, log__every_steps=1,
                                             data__tokens=101 * 20))  # fmt: skip
        assert done.returncode == 0, done.stderr
        curves[encode] = [line["fvu"] for line in metrics(out) if "fvu" in line]
    assert curves[screen][:5] == pytest.approx(curves["fp32"][:5], rel=1e-3)
