"""`megadict bench`: what it compares is right, and what it writes is there. No time is judged."""

import json

import pytest

from test_cli_refusals import call, refused, USAGE


def test_kernels(megadict_bin, tmp_path):
    out = tmp_path / "kernels.json"
    done = call(megadict_bin, ["bench", "kernels", "--d", "48", "--n_latents", "1000", "--k", "5", "--rows", "200",
                               "--repeats", "1", "--json", str(out)], tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    names = [line["name"] for line in report["lines"]]
    assert {"encode fp32", "decode", "row pass adam"} <= set(names)
    for line in report["lines"]:
        assert line["median_s"] > 0 and line["rate"] > 0
        assert line.get("wrong", 0) == 0, line
        assert line["name"] in done.stdout


@pytest.mark.parametrize("ranks, more", [
    (0, []), (0, ["--encode", "fp32", "--optimiser", "adam_b1_0", "--dead", "40", "--k_aux", "9"]), (2, []),
    (4, ["--mesh.data", "2", "--mesh.feature", "2", "--optimiser", "sign_sgd"]),
])  # fmt: skip
def test_step(megadict_bin, tmp_path, ranks, more):
    out = tmp_path / "step.json"
    encode = [] if "--encode" in more else ["--encode", "fp32"]
    done = call(megadict_bin, ["bench", "step", "--d", "24", "--n_latents", "131", "--k", "5", "--rows", "61",
                               "--repeats", "2", "--json", str(out), *encode, *more], tmp_path, ranks)  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    times = {line["name"]: line["median_s"] for line in report["lines"]}
    assert set(times) == {"rows", "encode", "decode", "auxk", "update", "step"}
    assert (times["auxk"] > 0) == ("--k_aux" in more)
    assert 0 < times["encode"] < times["step"]


@pytest.mark.parametrize("words, part", [
    (["bench"], "needs a command"),
    (["bench", "kernels", "--k", "9", "--n_latents", "8"], "k = 9 is larger than n_latents = 8"),
    (["bench", "kernels", "--rows", "0"], "rows"),
    (["bench", "step", "--k", "9", "--n_latents", "8"], "is larger than n_latents = 8"),
    (["bench", "step", "--optimiser", "adma"], "adam"),
    (["bench", "step", "--mesh.feature", "3"], "mesh"),
])  # fmt: skip
def test_refusals(megadict_bin, tmp_path, words, part):
    refused(megadict_bin, tmp_path, words, USAGE, part)
