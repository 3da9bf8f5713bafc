"""kernels.isa and kernels.set: the same training on every version of the operations."""

import json

import pytest
from training import held_out_fvu, mesh_words, run, same_bits, synth, train_words

ISAS = ["scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"]  # each includes those before it


@pytest.fixture(scope="module")
def data(megadict_bin, tmp_path_factory):
    return synth(megadict_bin, tmp_path_factory.mktemp("kernels") / "acts")


@pytest.fixture(scope="module")
def best(megadict_bin):
    lines = run(megadict_bin, ["info"]).stdout.splitlines()
    return next(line.split()[1] for line in lines if line.startswith("kernels "))


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def short(data, folder, **fields):
    return train_words(data, folder, data__tokens=101 * 20, **fields)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1)])
def test_every_choice_learns_the_same(megadict_bin, best, data, tmp_path, shape):
    scores = {}
    choices = [{"kernels__isa": isa} for isa in ISAS[: ISAS.index(best) + 1]]
    for fields in [{}, *choices, {"kernels__set": "tensor"}, {"kernels__set": "cpu"}]:
        out = tmp_path / ("_".join(fields.values()) or "auto")
        words = short(data, out, **fields, **mesh_words(shape))
        done = run(megadict_bin, words, ranks=shape[0] * shape[1])
        assert done.returncode == 0, done.stderr
        scores[out.name] = held_out_fvu(out)
        config = config_of(out)
        assert config["kernels.isa"]["value"] == fields.get("kernels__isa", best)
        assert config["kernels.set"]["value"] == fields.get("kernels__set", "auto")
    assert all(score == pytest.approx(scores["auto"], rel=5e-3) for score in scores.values()), scores


def test_auto_is_kept_and_a_change_is_noticed(megadict_bin, best, data, tmp_path):
    out = tmp_path / "run"
    assert run(megadict_bin, short(data, out, checkpoint__every_steps=5, checkpoint__keep=9)).returncode == 0
    assert config_of(out)["kernels.isa"] == {"value": best, "source": "resolved"}
    step = out / "checkpoints" / "step_000000010"
    again = tmp_path / "again"
    words = short(data, again, run__resume=step, checkpoint__every_steps=5)
    assert run(megadict_bin, words).returncode == 0
    assert same_bits(out / "final", again / "final")
    other = tmp_path / "other"
    more = {"run__resume": step, "kernels__isa": "scalar", "kernels__set": "tensor"}
    done = run(megadict_bin, short(data, other, **more))
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "kernels.isa" in said and "kernels.set" in said
    assert config_of(other)["kernels.isa"] == {"value": "scalar", "source": "command line"}


@pytest.mark.parametrize("fields, part", [
    ({"kernels__isa": "avx"}, "auto, amx, avx512_bf16, avx512_vnni, avx512, avx2, scalar"),
    ({"kernels__set": "gpu"}, "auto, cpu, tensor"),
    ({"kernels__set": "tensor", "kernels__encode": "screen_int8"}, "has no screen"),
    ({"kernels__isa": "avx2", "kernels__encode": "screen_int8"}, "no instructions for it, at least on some rank, in avx2"),
    ({"kernels__isa": "avx2", "kernels__encode": "screen_bf16"}, "no instructions for it, at least on some rank, in avx2"),
    ({"kernels__set": "cpu", "run__device": "cuda"}, "kernels.set = cpu with run.device = cuda"),
])  # fmt: skip
def test_refusals(megadict_bin, best, data, tmp_path, fields, part):
    if fields.get("kernels__isa") == "avx2" and best == "scalar":
        pytest.skip("this processor has no AVX2")
    done = run(megadict_bin, short(data, tmp_path / "run", **fields))
    assert done.returncode == 2 and part in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()
