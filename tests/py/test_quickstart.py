"""launch/quickstart.sh on a few rows: every stage for real, a second call that finds all of it done."""

import os
import subprocess
from pathlib import Path

import pytest


def quickstart(repo: Path, out: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([str(repo / "launch" / "quickstart.sh"), "--out", str(out), *words], cwd=out.parent,
                          capture_output=True, text=True, timeout=1500, stdin=subprocess.DEVNULL)  # fmt: skip


@pytest.mark.slow
def test_from_nothing_to_a_dictionary_that_saelens_loads(repo_root, tmp_path):
    out = tmp_path / "quick"
    first = quickstart(repo_root, out, "--rows", "4000", "--tokens", "8192")
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
    for name in ("FVU", "PCA", "L0", "never fire", "tokens/s", "Minutes: set-up", "Next,",
                 "loss recovered", "nats a token"):
        assert name in first.stdout
    second = quickstart(repo_root, out, "--rows", "4000", "--tokens", "8192")
    assert second.returncode == 0, second.stdout[-2000:] + second.stderr[-2000:]
    assert second.stdout.count("there already:") == 4

    page = (out / "report.html").read_text()
    assert "Loss recovered" in page and "<mark>" in page

    from sae_lens import SAE

    sae = SAE.load_from_disk(str(out / "saelens"))
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (576, 9216)


@pytest.mark.parametrize("words", [["--outt", "x"], ["--rows", "many"], ["--device", "tpu"], ["--out"]])
def test_bad_options_are_refused_before_any_work(repo_root, tmp_path, words):
    done = subprocess.run([repo_root / "launch" / "quickstart.sh", *words], cwd=tmp_path, capture_output=True,
                          text=True, env=os.environ | {"MEGADICT_HOME": str(tmp_path / "home")})  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
