"""`sweep --evaluate`: many dictionaries in one pass, each with the numbers of `megadict eval`."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training import run, start, synth, train_words

SAVING = {"checkpoint__every_steps": 20, "checkpoint__every_minutes": 0}


@pytest.fixture(scope="module")
def places(megadict_bin, tmp_path_factory):
    """Data with held-out rows; a run with checkpoints, one of another kind, one with averages, an exported one."""
    root = tmp_path_factory.mktemp("places")
    data = synth(megadict_bin, root / "acts", rows=8000)
    narrow = synth(megadict_bin, root / "narrow", rows=500, d=16)
    runs = {
        "a": {**SAVING, "checkpoint__keep": 2},
        "b": {"model__activation": "batchtopk", "model__n_latents": 50, "data__normalize": "unit_rms",
              "data__center": "true"},
        "c": {"model__k": 5, "optim__ema": 0.9},
    }  # fmt: skip
    for name, more in runs.items():
        done = run(megadict_bin, train_words(data, root / name, **more))
        assert done.returncode == 0, done.stderr
    done = run(megadict_bin, ["export", "--run.dir", root / "b", "--format", "saelens", "--out", root / "exported"])
    assert done.returncode == 0, done.stderr
    return {"data": data, "narrow": narrow, "exported": root / "exported", **{name: root / name for name in runs}}


def evaluate_words(places, out, names, **more):
    given = {"data.path": places["data"], "sweep.dir": out}
    given.update({name.replace("__", "."): value for name, value in more.items()})
    return ["sweep", "--evaluate", *[places.get(name, name) for name in names],
            *[word for name, value in given.items() for word in (f"--{name}", value)]]  # fmt: skip


def rows_of(out):
    return json.loads((out / "sweep.json").read_text())["points"]


def judged(out):
    """What stands in each point's eval.json, by the dictionary's path."""
    found = [json.loads(path.read_text()) for path in sorted((out / "points").glob("*/eval.json"))]
    return {one["checkpoint"]: one for one in found}


def eval_of(binary, folder, data, to, ranks=1, **more):
    given = [word for name, value in more.items() for word in (f"--{name.replace('__', '.')}", value)]
    done = run(binary, ["eval", "--run.dir", folder, "--data.path", data, "--json", to, *given], ranks=ranks)
    assert done.returncode == 0, done.stderr
    return json.loads(to.read_text())


@pytest.fixture(scope="module")
def alone(megadict_bin, places, tmp_path_factory):
    """The evaluation of all on one rank."""
    out = tmp_path_factory.mktemp("alone") / "sweep"
    done = run(megadict_bin, evaluate_words(places, out, ["a", "b", "c", "exported"]))
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def numbers(value):
    """All numbers of a JSON value, in order."""
    if isinstance(value, dict):
        return [n for one in value.values() for n in numbers(one)]
    if isinstance(value, list):
        return [n for one in value for n in numbers(one)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.parametrize("ranks, mesh", [(1, {}), (2, {}), (2, {"mesh__data": 2}), (4, {"mesh__data": 2})],
                         ids=["1", "1x2", "2x1", "2x2"])
def test_numbers_are_those_of_eval(megadict_bin, places, alone, tmp_path, ranks, mesh):
    out, text = alone
    if ranks > 1:
        out = tmp_path / "sweep"
        done = run(megadict_bin, evaluate_words(places, out, ["a", "b", "c", "exported"], **mesh), ranks=ranks)
        assert done.returncode == 0, done.stderr
        text = done.stdout
    assert "5 dictionaries, 5 of them to judge on" in text and "in one pass over the rows" in text
    assert "judge on %s" % (places["data"] / "eval") in text
    found = judged(out)
    # Of a, what it kept: the step of its end is final/.
    assert sorted(found) == sorted([*map(str, (
        places["a"] / "checkpoints" / "step_000000040", places["a"] / "final", places["b"] / "final",
        places["c"] / "final", places["exported"]))])
    for folder, values in found.items():
        assert values == eval_of(megadict_bin, folder, places["data"], tmp_path / "e.json", ranks, **mesh), folder
    first = judged(alone[0])
    for folder, values in found.items():
        pairs = list(zip(numbers(values), numbers(first[folder]), strict=True))
        assert all(math.isclose(a, b, rel_tol=1e-11, abs_tol=1e-12) for a, b in pairs), folder


def test_table_files_and_frontier(places, alone, repo_root):
    out, text = alone
    with open(out / "sweep.csv") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["fvu"]) for line in lines] == sorted(float(line["fvu"]) for line in lines)
    found = judged(out)
    for line, row in zip(lines, rows_of(out), strict=True):
        values = found[line["dictionary"]]
        assert row["metrics"]["fvu"] == values["fvu"] == float(line["fvu"])
        assert (line["step"], line["n_latents"], line["status"]) == (
            str(values["step"]), str(values["n_latents"]), "done")
        assert line["dictionary"] in text
    done = subprocess.run([sys.executable, repo_root / "tools" / "frontier.py", out], capture_output=True, text=True,
                          timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 + len(lines)


def test_groups_change_no_number_and_holes_are_filled(megadict_bin, places, alone, tmp_path):
    out = tmp_path / "sweep"
    words = evaluate_words(places, out, ["a", "b", "c", "exported"], together=2)
    done = run(megadict_bin, words)
    assert done.returncode == 0, done.stderr
    assert "at most 2 at a time: the rows are read 3 times" in done.stdout
    assert judged(out) == judged(alone[0])
    records = sorted((out / "points").glob("*/point.json"))
    before = [path.stat().st_mtime_ns for path in records]
    records[1].unlink()
    again = run(megadict_bin, words)
    assert again.returncode == 0 and "5 dictionaries, 1 of them to judge" in again.stdout
    changed = [i for i, path in enumerate(records) if path.stat().st_mtime_ns != before[i]]
    assert changed == [1]
    assert judged(out) == judged(alone[0])
    # Judged on other rows the table would hold two things.
    other = run(megadict_bin, [*words, "--eval.tokens", "100"])
    assert other.returncode == 2
    assert "is finished with eval.tokens = '0', the sweep now says '100'" in other.stderr


def test_both_weights_and_the_newest_checkpoint(megadict_bin, places, tmp_path):
    out = tmp_path / "sweep"
    words = evaluate_words(places, out, ["a", "c", "exported"], weights="both", checkpoints="newest",
                           eval__truth=places["data"], eval__tokens=1000, sort="-n_latents")
    done = run(megadict_bin, words)
    assert done.returncode == 0, done.stderr
    rows = rows_of(out)
    assert {(row["settings"]["dictionary"], row["settings"]["weights"]) for row in rows} == {
        (str(places["a"] / "final"), "last"), (str(places["c"] / "final"), "last"),
        (str(places["c"] / "final"), "ema"), (str(places["exported"]), "last")}
    assert rows[-1]["settings"]["n_latents"] == "50"
    for row in rows:
        own = json.loads((out / "points" / row["name"] / "eval.json").read_text())
        assert own == eval_of(megadict_bin, row["settings"]["dictionary"], places["data"], tmp_path / "e.json",
                              weights=row["settings"]["weights"], eval__truth=places["data"], eval__tokens=1000)
        assert row["metrics"]["mcc"] == own["mcc"]


def test_a_training_sweep_and_its_failed_point(megadict_bin, places, tmp_path):
    sweep, out = tmp_path / "trained", tmp_path / "sweep"
    grid = tmp_path / "grid.ini"
    grid.write_text(f"[points]\ngood = model.k=2\nblind = data.path={tmp_path}/absent\n")
    given = train_words(places["data"], "x")[1:]
    config = tmp_path / "base.ini"
    pairs = zip(given[::2], given[1::2], strict=True)
    config.write_text("".join(f"{name[2:]} = {value}\n" for name, value in pairs if name != "--run.dir"))
    assert run(megadict_bin, ["sweep", "--grid", grid, "--config", config, "--sweep.dir", sweep]).returncode == 1
    done = run(megadict_bin, evaluate_words(places, out, [sweep]))
    assert done.returncode == 0, done.stderr
    assert f"'{sweep}/points/blind' holds no dictionary and is left out" in done.stderr
    assert list(judged(out)) == [f"{sweep}/points/good/final"]
    into = run(megadict_bin, evaluate_words(places, sweep, ["a"]))
    assert into.returncode == 2 and "is that of a training sweep" in into.stderr
    listed = run(megadict_bin, [*evaluate_words(places, out, [sweep, "b"]), "--list"])
    assert [line.split()[1] for line in listed.stdout.splitlines()] == [
        f"{sweep}/points/good/final", str(places["b"] / "final")]


REFUSED = [
    (["a", "a"], {}, 2, "--evaluate names a dictionary twice"),
    (["a", "exported", "exported"], {}, 2, "--evaluate names a dictionary twice"),
    ([], {}, 2, "--evaluate needs a path"),
    (["nowhere"], {}, 2, "no dictionary at 'nowhere'"),
    (["a"], {"data__path": "narrow"}, 3, "has width 24, the rows of"),
    (["a", "exported"], {"data__path": "narrow"}, 3, "has width 24, the rows of"),
    (["a"], {"weights": "ema"}, 2, "holds no averaged weights"),
    (["c", "exported"], {"weights": "ema"}, 2, "holds no averaged weights"),
    (["a"], {"model__k": 3}, 2, "unknown flag '--model.k'"),
    (["a"], {"checkpoints": "some"}, 2, "checkpoints = 'some'"),
    (["a"], {"sort": "fvw"}, 2, "did you mean fvu?"),
    (["a"], {"data__path": "nowhere"}, 3, "nowhere"),
]  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("names, more, code, reason", REFUSED, ids=[f"{c[0]} {c[3]}" for c in REFUSED])
def test_refusals_write_nothing(megadict_bin, places, tmp_path, names, more, code, reason, ranks):
    out = tmp_path / "sweep"
    more = {name: places.get(value, value) for name, value in more.items()}
    done = run(megadict_bin, evaluate_words(places, out, names, **more), ranks=ranks)
    assert (done.returncode, reason in done.stderr) == (code, True), done.stderr
    assert done.stderr.count("megadict:") == 1
    assert not out.exists()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("sent, code", [(signal.SIGUSR1, 75), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_judged(megadict_bin, places, alone, tmp_path, sent, code, ranks):
    out = tmp_path / "sweep"
    words = evaluate_words(places, out, ["a", "b", "c", "exported"], together=1, data__batch_size=1)
    job = start(megadict_bin, words, ranks)
    while job.poll() is None and not list(out.glob("points/*/point.json")):
        time.sleep(0.005)
    if sent == signal.SIGTERM and ranks > 1:  # the launcher would end by itself: to one rank
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        os.kill(int(children[-1]), sent)
    else:
        job.send_signal(sent)
    text, errors = job.communicate(timeout=120)
    assert job.returncode == code, errors
    done = len(list(out.glob("points/*/point.json")))
    assert 1 <= done < 5
    assert f"stopped by a signal after {done} of 5 passes" in errors
    assert sum(row["status"] == "done" for row in rows_of(out)) == done
    again = run(megadict_bin, words, ranks)
    assert again.returncode == 0 and f"5 dictionaries, {5 - done} of them to judge" in again.stdout
    assert [row["status"] for row in rows_of(out)] == ["done"] * 5
