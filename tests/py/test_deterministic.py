"""run.deterministic: the weights of 100 steps are the same bits on every mesh, for one thread and
two, and when the run moves to another mesh half-way."""

import json

import numpy as np
import pytest
from training import mesh_words, run, synth, train_words, weights

SHAPES = [(1, 1, 2), (1, 2, 1), (2, 1, 1), (2, 2, 1), (1, 3, 1), (1, 4, 1), (3, 2, 1)]
DETERMINISTIC = {"run__deterministic": "true", "data__tokens": 101 * 100,
                 "dead__window_tokens": 500, "log__every_steps": 50}


@pytest.fixture(scope="module")
def data(megadict_bin, tmp_path_factory):
    return synth(megadict_bin, tmp_path_factory.mktemp("data") / "acts")


def whole(folder):
    """Name -> the tensor of all parts; b_dec is the same in each."""
    return {name: parts[0] if name == "b_dec" else np.concatenate(parts)
            for name, parts in weights(folder).items()}


def equal(a, b):
    a, b = whole(a), whole(b)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def alone(megadict_bin, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    done = run(megadict_bin, train_words(data, out, **DETERMINISTIC, run__threads=1))
    assert done.returncode == 0, done.stderr
    return out / "final"


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}t{s[2]}")
def test_every_mesh_gives_the_same_bits(megadict_bin, data, tmp_path, alone, shape):
    words = train_words(data, tmp_path / "run", **DETERMINISTIC, run__threads=shape[2],
                        **mesh_words(shape[:2]))
    done = run(megadict_bin, words, ranks=shape[0] * shape[1])
    assert done.returncode == 0, done.stderr
    assert equal(tmp_path / "run" / "final", alone)


def test_a_run_that_moves_to_another_mesh_gives_the_same_bits(megadict_bin, data, tmp_path, alone):
    fields = {**DETERMINISTIC, "checkpoint__every_steps": 50, "checkpoint__keep": 9}
    done = run(megadict_bin, train_words(data, tmp_path / "run", **fields, **mesh_words((1, 2))), 2)
    assert done.returncode == 0, done.stderr
    half = tmp_path / "run" / "checkpoints" / "step_000000050"
    done = run(megadict_bin, train_words(data, tmp_path / "other", **fields, run__resume=half,
                                         **mesh_words((3, 1))), 3)
    assert done.returncode == 0, done.stderr
    assert equal(tmp_path / "other" / "final", alone)


def test_a_fast_run_that_goes_on_deterministically_gives_up_its_screen(megadict_bin, data, tmp_path):
    """kernels.encode as `auto` picked it, perhaps the screen, is not kept."""
    fields = {"model__n_latents": 8192, "data__tokens": 101 * 6, "checkpoint__every_steps": 3,
              "checkpoint__keep": 9}
    done = run(megadict_bin, train_words(data, tmp_path / "fast", **fields))
    assert done.returncode == 0, done.stderr
    half = tmp_path / "fast" / "checkpoints" / "step_000000003"
    for shape in ((1, 1), (1, 2), (2, 1)):
        out = tmp_path / f"{shape[0]}x{shape[1]}"
        done = run(megadict_bin, train_words(data, out, **fields, run__resume=half,
                                             run__deterministic="true", **mesh_words(shape)),
                   shape[0] * shape[1])
        assert done.returncode == 0, done.stderr
        assert json.loads((out / "config.json").read_text())["kernels.encode"]["value"] == "fp32"
        assert equal(out / "final", tmp_path / "1x1" / "final")


@pytest.mark.parametrize("fields, what", [
    ({"kernels__encode": "screen_int8"}, "kernels.encode = screen_int8"),
    ({"kernels__encode": "screen_bf16"}, "kernels.encode = screen_bf16"),
    ({"optim__clip_norm": 1}, "optim.clip_norm > 0"),
    ({"mesh__exchange": "gradients"}, "mesh.exchange = gradients"),
    ({"run__device": "cuda"}, "run.device = cuda")])
def test_what_cannot_be_deterministic_is_refused(megadict_bin, data, tmp_path, fields, what):
    done = run(megadict_bin, train_words(data, tmp_path / "run", run__deterministic="true", **fields))
    assert done.returncode == 2
    assert f"run.deterministic with {what}" in done.stderr
    assert not (tmp_path / "run").exists()


def test_tokens_cannot_be_clipped(megadict_bin, data, tmp_path):
    done = run(megadict_bin, train_words(data, tmp_path / "run", mesh__exchange="tokens",
                                         optim__clip_norm=1))
    assert done.returncode == 2
    assert "clipping needs gradients before rows move" in done.stderr
