"""compare_meshes.py: small runs on three meshes stay together, and a limit that is broken is said."""

import json

import compare_meshes
from megadict_tools.errors import main_guard
from training import synth


def test_meshes_stay_together_and_dead_latents_come_back(megadict_bin, tmp_path, capfd):
    data = synth(megadict_bin, tmp_path / "acts", rows=6000, latents=96, d=24)
    words = ["--data", data, "--out", tmp_path / "runs", "--binary", megadict_bin, "--n", 97, "--k", 4,
             "--batch", 61, "--epochs", 6, "--early_lr", 1e-3, "--lr", 4e-3, "--meshes", "1x1", "2x1", "1x3",
             "--json", tmp_path / "out.json"]
    code = main_guard("compare_meshes", lambda: compare_meshes.main([str(w) for w in words]))
    results = json.loads((tmp_path / "out.json").read_text())
    said = capfd.readouterr()
    assert [r["mesh"] for r in results] == ["1x1", "2x1", "1x3"] * 3
    assert all(r["early_difference"] < 0.01 for r in results), said.out
    assert results[0]["dead_after_window_pct"] > 15 and results[0]["revived"] > 0.5
    assert (code == 1) == ("limit not kept" in said.err)
    assert "| topk | 1x3 |" in said.out
