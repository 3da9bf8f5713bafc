"""dead_latents.py: one row per remedy, moved rows, and what it refuses."""

import pytest

import dead_latents
from megadict_tools.errors import main_guard
from training import synth


@pytest.fixture(scope="module")
def data(megadict_bin, tmp_path_factory):
    return synth(megadict_bin, tmp_path_factory.mktemp("dead") / "acts", rows=4000)


def called(*words):
    return main_guard("dead_latents", lambda: dead_latents.main([str(word) for word in words]))


@pytest.mark.parametrize("shift", [0, 3])
def test_every_remedy_is_a_row(megadict_bin, data, capsys, shift):
    assert called("--data", data, "--n", 96, "--k", 3, "--batch", 101, "--steps", 20, "--threads", 1,
                  "--resample_rows", 500, "--stratum", 12, "--shift", shift,
                  "--megadict", megadict_bin) == 0
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()]
    assert rows == ["remedy", "---", "none", "resampling", "auxk", "auxk_stratum",
                    "auxk_and_resampling", "geometric_median", "center"]


@pytest.mark.parametrize("words, code, said", [
    (["--remedies", "prayer"], 2, "--remedies prayer; allowed: none, resampling"),
    (["--steps", 0], 2, "--steps 0 is not positive"),
    (["--data", "absent", "--shift", 1], 3, "'absent' holds no .h5 shards"),
    (["--data", "absent", "--megadict", "/bin/false"], 1, "megadict train ended with 1"),
])
def test_refusals(data, capsys, words, code, said):
    assert called("--data", data, *words) == code
    assert said in capsys.readouterr().err
