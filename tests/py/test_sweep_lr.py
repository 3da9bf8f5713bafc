"""sweep_lr.py: the best rate is bracketed, an interrupted search goes on, a rule is fitted."""

import json
import math

import pytest

import sweep_lr
from megadict_tools.errors import main_guard
from training import synth


@pytest.fixture(scope="module")
def data(megadict_bin, tmp_path_factory):
    return synth(megadict_bin, tmp_path_factory.mktemp("sweep") / "acts", rows=4000)


def swept(*words):
    return main_guard("sweep_lr", lambda: sweep_lr.main([str(word) for word in words]))


def point(n, steps, power, fvu):
    return {"data": "acts", "optimiser": "adam", "n": n, "k": 4, "batch": 64, "steps": steps,
            "seed": 0, "power": power, "fvu": fvu}


def test_the_best_rate_is_bracketed_and_a_search_goes_on(megadict_bin, data, tmp_path):
    out = tmp_path / "sweep.jsonl"
    words = ["--data", data, "--out", out, "--n", 64, "--k", 3, "--batch", 128, "--steps", 20,
             "--threads", 1, "--megadict", megadict_bin, "--flags", "dead.auxk_alpha=0"]
    assert swept(*words) == 0
    lines = out.read_text().splitlines()
    points = {p["power"]: p["fvu"] for p in map(json.loads, lines)}
    best = min(points, key=points.get)
    assert {best - 1, best + 1} <= points.keys()
    out.write_text("\n".join(lines[:-1]) + "\n")
    assert swept(*words) == 0
    assert len(out.read_text().splitlines()) == len(lines)


def test_a_planted_rule_is_found(tmp_path, capsys):
    def log_fvu(n, steps, power):
        best = 3 - 0.5 * math.log2(n / 1024) - 0.25 * math.log2(steps / 100)
        return -2 + 0.1 * (power - best)**2

    points = [point(n, steps, power, math.exp(log_fvu(n, steps, power)))
              for n in (1024, 4096, 16384) for steps in (100, 400) for power in range(-6, 7)]
    points.append(point(1024, 100, 7, None))  # diverged
    path = tmp_path / "planted.jsonl"
    path.write_text("".join(json.dumps(p) + "\n" for p in points))
    assert swept("--fit", path) == 0
    first, *table = capsys.readouterr().out.splitlines()
    assert first == "log2(lr / 1e-3) = 9.661 -0.500 log2(n) -0.250 log2(steps)"
    assert len(table) == 2 + 6 and all(row.endswith("| 0.0% |") for row in table[2:])


@pytest.mark.parametrize("words, said", [
    ([], "--data and --out are needed, or --fit"),
    (["--fit", "absent.jsonl"], "'absent.jsonl' is no result of this tool"),
    (["--data", "d", "--out", "o", "--start_lr", 0], "--start_lr 0.0 is not positive"),
    (["--data", "absent", "--out", "o"], "megadict train ended with")])
def test_refusals(megadict_bin, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert swept(*words, "--megadict", megadict_bin) in (1, 2, 3)
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
