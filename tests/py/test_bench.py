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


@pytest.mark.parametrize("words, part", [
    (["bench"], "needs a command"),
    (["bench", "kernels", "--k", "9", "--n_latents", "8"], "k = 9 is larger than n_latents = 8"),
    (["bench", "kernels", "--rows", "0"], "rows"),
])  # fmt: skip
def test_refusals(megadict_bin, tmp_path, words, part):
    refused(megadict_bin, tmp_path, words, USAGE, part)
