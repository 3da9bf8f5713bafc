"""`megadict lab`: the same numbers on any number of ranks, goes on, refuses."""

import json
import shutil

import pytest
from training import run, synth

USAGE, BAD_DATA, DIVERGED = 2, 3, 4
SMALL = ["--seeds", "2", "--samples", "128", "--steps", "40"]


def lab(megadict_bin, out, *words, ranks=1, code=0):
    done = run(megadict_bin, ["lab", "run", *words, "--out", out], ranks)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def numbers(out, name):
    result = json.loads((out / name / "result.json").read_text())
    cells = [(cell["group"], cell["run"], cell["settings"], cell["numbers"]) for cell in result["cells"]]
    return cells, [row for row in result["table"] if not row.get("time")]


@pytest.mark.parametrize("name", [
    "known_codes", "known_dictionary", "pursuits", "bias", "topk_codes", "resampling", "traditional", "architectures",
    "headline",
])  # fmt: skip
def test_any_number_of_ranks_gives_the_same(megadict_bin, tmp_path, name):
    lab(megadict_bin, tmp_path / "one", name, "--quick", *SMALL)
    for ranks in (2, 4):
        lab(megadict_bin, tmp_path / str(ranks), name, "--quick", *SMALL, ranks=ranks)
        assert numbers(tmp_path / str(ranks), f"{name}_quick") == numbers(tmp_path / "one", f"{name}_quick")


def test_planted_compositions_give_the_same_on_any_number_of_ranks(megadict_bin, tmp_path):
    for ranks in (1, 4):
        lab(megadict_bin, tmp_path / str(ranks), "compositions", "--quick", "--steps", "40", ranks=ranks)
    found, table = numbers(tmp_path / "1", "compositions_quick")
    assert (found, table) == numbers(tmp_path / "4", "compositions_quick")
    assert len(found) == 15 and {row["verdict"] for row in table} <= {"-", "holds", "DOES NOT HOLD"}


def test_codes_from_a_warm_start_are_ahead_at_first(megadict_bin, tmp_path):
    lab(megadict_bin, tmp_path, "known_dictionary", "--quick", "--seeds", "1", "--samples", "256", "--steps", "1000")
    curves = {group: cell["code_curve"] for group, _, _, cell in numbers(tmp_path, "known_dictionary_quick")[0]
              if "code_curve" in cell}
    assert curves["ito"]["step"] == curves["ito_warm"]["step"] == [0, 250, 500, 750]
    assert curves["ito_warm"]["loss"][0] < curves["ito"]["loss"][0]


def test_a_run_goes_on_at_its_finished_cells(megadict_bin, tmp_path):
    lab(megadict_bin, tmp_path, "pursuits", *SMALL)
    before = numbers(tmp_path, "pursuits")
    cells = tmp_path / "pursuits" / "cells"
    kept = (cells / "pursuits_seed0.json").stat().st_mtime_ns
    (cells / "pursuits_seed1.json").unlink()
    done = lab(megadict_bin, tmp_path, "pursuits", *SMALL)
    assert "4 cells, 3 done before" in done.stdout and "pursuits_seed1 is done" in done.stdout
    assert (cells / "pursuits_seed0.json").stat().st_mtime_ns == kept
    assert numbers(tmp_path, "pursuits") == before


def test_list_names_what_run_takes(megadict_bin):
    done = run(megadict_bin, ["lab", "list"])
    assert done.returncode == 0
    for name in ("known_codes", "unknown", "regimes", "frontier", "resampling"):
        assert name in done.stdout


@pytest.mark.parametrize(("words", "part"), [
    (["unknwon"], "did you mean 'unknown'?"), (["unknown", "--latents", "0"], "latents = 0"),
    (["unknown", "--width", "0"], "width = 0"), (["unknown", "--k", "40"], "k = 40 active of 16 latents"),
    (["unknown", "--samples", "100"], "a multiple of 32"), (["unknown", "--quick", "--full"], "exclude each other"),
    (["compositions", "--latents", "8"], "compositions has a problem of its own"),
    ([], "NAME"), (["unknown", "--out", "/dev/null/x"], "/dev/null"),
])  # fmt: skip
def test_refusals(megadict_bin, tmp_path, words, part):
    more = [] if "--out" in words else ["--out", tmp_path / "out"]
    done = run(megadict_bin, ["lab", "run", *words, *more])
    assert (done.returncode, len(done.stderr.splitlines())) == (USAGE, 1), done.stderr
    assert part in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_diverging_cell_ends_all_with_its_step(megadict_bin, tmp_path, ranks):
    done = lab(megadict_bin, tmp_path, "unknown", "--rate", "1e25", *SMALL, ranks=ranks, code=DIVERGED)
    assert "is not finite" in done.stderr and "step" in done.stderr


def test_other_settings_and_a_broken_cell_are_refused(megadict_bin, tmp_path):
    lab(megadict_bin, tmp_path, "pursuits", *SMALL)
    cell = tmp_path / "pursuits" / "cells" / "pursuits_seed0.json"
    kept = cell.read_bytes()
    done = lab(megadict_bin, tmp_path, "pursuits", "--seeds", "2", "--samples", "64", code=USAGE)
    assert "a cell of other settings" in done.stderr and cell.read_bytes() == kept
    cell.write_text('{"settings": 1}')
    assert "is no cell" in lab(megadict_bin, tmp_path, "pursuits", *SMALL, code=BAD_DATA).stderr
    shutil.rmtree(cell.parent)
    cell.parent.write_text("in the way")
    lab(megadict_bin, tmp_path, "pursuits", *SMALL, code=1)


@pytest.fixture(scope="module")
def acts(megadict_bin, tmp_path_factory):
    return synth(megadict_bin, tmp_path_factory.mktemp("lab") / "acts", rows=4000)


@pytest.mark.parametrize(("name", "least"), [("depth", 15), ("frontier", 15), ("scaling", 20), ("dead", 3)])
def test_rows_of_activations_give_the_same_on_any_number_of_ranks(megadict_bin, tmp_path, acts, name, least):
    words = [name, "--quick", "--data.path", acts, "--steps", "3", "--latents", "40"]
    lab(megadict_bin, tmp_path / "one", *words)
    lab(megadict_bin, tmp_path / "three", *words, ranks=3)
    assert numbers(tmp_path / "three", f"{name}_rows_quick") == numbers(tmp_path / "one", f"{name}_rows_quick")
    cells, table = numbers(tmp_path / "one", f"{name}_rows_quick")
    assert len(cells) >= least and all(0 < cell[3]["fvu"] for cell in cells) and len(table) >= len(cells)


@pytest.mark.parametrize(("words", "code", "part"), [
    (["depth"], USAGE, "--data.path FOLDER"), (["depth", "--data.path", "nowhere"], BAD_DATA, "nowhere"),
    (["unknown", "--data.path", "ACTS"], USAGE, "has a problem of its own"),
    (["depth", "--data.path", "ACTS/eval"], BAD_DATA, "has no eval/"),
])  # fmt: skip
def test_rows_that_cannot_be_trained_on_are_refused(megadict_bin, tmp_path, acts, words, code, part):
    words = [word.replace("ACTS", str(acts)) for word in words]
    done = run(megadict_bin, ["lab", "run", *words, "--out", tmp_path / "out"])
    assert done.returncode == code and len(done.stderr.splitlines()) == 1 and part in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()
