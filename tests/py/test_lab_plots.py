"""lab_plots.py: figures and verdicts of results that are written by hand, and of the laboratory's own."""

import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from test_report import CONTRAST, WIDER, Page, browser  # noqa: F401
from training import run

import lab_plots
from megadict_tools import lab_flops
from megadict_tools.charts import Axis
from megadict_tools.errors import main_guard
from megadict_tools.lab_charts import Area, Point, Tile, Trace, category_chart, map_chart, xy_chart
from megadict_tools.lab_figures import FIGURES, figures_of
from megadict_tools.lab_grids import line_of
from megadict_tools.lab_results import read_experiment, read_experiments
from megadict_tools.lab_rows import band_of, reported_of, rows_chart

DATA = {"latents": 16, "width": 8, "k": 3, "samples": 2048}
HOSTILE = "<script>alert(1)</script>&\""


def draw(*words) -> int:
    return main_guard("lab_plots", lambda: lab_plots.main([str(w) for w in words]))


def row(what="score", ours=0.6, verdict="met", reported=".59 +- .01", band="0.5 to 0.7", sd=0.02, runs=2):
    return {"what": what, "reported": reported, "ours": ours, "sd": sd, "runs": runs, "band": band, "verdict": verdict}


def cell(group, run_number=0, method="sae", hidden=(), **numbers):
    model = {"method": method, "latents": 16, "hidden": list(hidden), "steps": 40, "code_steps": 100}
    return {"group": group, "run": run_number, "seconds": 1.0, "numbers": numbers,
            "settings": {"data": DATA, "model": model}}


def curve(**values):
    return {"step": [0, 20, 40], **values}


def scores(by=0.0):
    return {"mse": 0.01 + by, "loss": 0.02, "l0": 0.3 + by, "l0_1e-4": 0.29, "l1": 0.2 + by, "latent_mcc": 0.6 + by,
            "dictionary_mcc": 0.7 + by, "superposition_mean": 1.1, "largest_cosine": 0.8}


def square(size):
    return [[1.0 if i == j else (-1)**(i + j) * 0.3 for j in range(size)] for i in range(size)]


def cells_of(name):
    """A few cells of each experiment, named as src/lab names them."""
    mcc = curve(latent_mcc=[0.4, 0.5, 0.6], dictionary_mcc=[0.6, 0.7, 0.75], score=[0.1, 0.7, 0.9])
    if name == "known_codes":
        return [cell(g, r, hidden=h, score=0.9, curve=mcc) for g, h in (("sae", ()), ("mlp32", (32,))) for r in (0, 1)]
    if name in ("known_dictionary", "unknown"):
        trained = [cell(g, 0, m, h, curve=mcc, **scores()) for g, m, h in (
            ("sae", "sae", ()), ("mlp32", "sae", (32,)), ("codes", "codes", ()), ("ito", "sae_then_codes", ()))]
        return trained + [cell("dl_fista", method="dl_fista", **scores(0.2))]
    if name == "regimes":
        return [cell(f"M{m}_N{n}_K3_{g}", **scores(by)) for m in (8, 16) for n in (16, 32)
                for g, by in (("sae", 0.0), ("codes", 0.25), ("dl_fista", 0.3))]
    if name == "frontier":
        named = [cell(f"{g}_lambda{v:g}", **scores(0.1 * i)) for g in ("sae", "codes")
                 for i, v in enumerate((0.05, 0.5, 2))]
        return named + [cell(f"topk{k}", **scores(0.01 * k)) for k in (1, 3, 8)]
    if name == "gram":
        return [cell(f"{g}{n}", softmax_gram=square(n), cosine_gram=square(n), **scores()) for n in (16, 12)
                for g in ("codes", "sae")]
    if name == "width":
        return [cell(f"N{n}_M8_h{h}", **scores(0.01 * i)) for n in (16, 32) for i, h in enumerate((16, 64, 256))]
    if name == "bias":
        return [cell(f"{g}_{s}", **scores()) for g in ("sae", "codes") for s in ("bias", "none")]
    if name == "topk_codes":
        kept = {f"{a}{k}_{s}": 0.1 * k for a in "ab" for k in (1, 3, 5, 10) for s in ("mse", "mcc")}
        return [cell("codes", **scores(), **kept)]
    if name == "resampling":
        return [cell(g, dead_before=32, dead=d, mse=m, best_correlation=0.5) for g, d, m in (
            ("left", 32, 0.001), ("resampled", 0, 0.0001))]
    return [cell(name, mp_1k=0.9)]


def write(out, name, table=None, cells=None, quick=True, **more):
    folder = out / (name + ("_quick" if quick else ""))
    folder.mkdir(parents=True)
    facts = {"experiment": name, "items": "E0", "summary": f"{name} summary", "quick": quick, "seconds": 12.5,
             "machine": {"processor": "P", "ranks": 1}, "table": [row()] if table is None else table,
             "cells": cells_of(name) if cells is None else cells}
    (folder / "result.json").write_text(json.dumps(facts | more))
    return folder


@pytest.fixture
def all_results(tmp_path):
    out = tmp_path / "lab"
    for name in (*FIGURES, "connectors"):
        write(out, name)
    return out


# ---- what is drawn -------------------------------------------------------------------------------

def test_every_experiment_has_its_figures(all_results, capsys):
    assert draw(all_results) == 0
    plots = all_results / "plots"
    text = (plots / "index.html").read_text()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids)) == len(FIGURES) + 1
    assert {a["href"] for tag, a in page.tags if tag == "a"} == {"#" + i for i in page.ids}
    assert not re.search(r"(src|href)=\"(https?:)?//|@import|url\(", text)
    images = {path.stem for path in plots.glob("*.svg")}
    assert images == {f"{n}_quick_{k}" for n, k in (
        ("known_codes", "fig2"), ("known_dictionary", "fig3"), ("unknown", "fig4"), ("regimes", "fig5_k3"),
        ("frontier", "fig6"), ("gram", "fig9"), ("gram", "fig11"), ("width", "fig12"), ("bias", "fig13"),
        ("topk_codes", "fig15"), ("resampling", "resampling"), ("pursuits", "pursuits"), ("connectors", "bands"))}
    for image in plots.glob("*.svg"):
        root = ElementTree.parse(image).getroot()
        assert root.findall(".//{*}svg") and "var(" not in image.read_text() and "nan" not in image.read_text()
    said = capsys.readouterr().out
    assert "12 experiments, 12 of 12 bands met" in said and "13 images" in said
    assert not list(plots.glob("*.partial"))


def test_reported_points_only_beside_the_seeds_own_problem(tmp_path):
    write(tmp_path, "frontier")
    own = [row(reported="", band="", verdict="-")]
    write(tmp_path, "frontier", own, quick=False)
    for quick, there in ((True, True), (False, False)):
        found = read_experiment(tmp_path / f"frontier{'_quick' if quick else ''}" / "result.json")
        panels = "".join(svg for figure in figures_of(found) for _, svg, _ in figure.panels)
        assert ('class="reported' in panels) == there and panels.count("<circle") > 10
        assert any(name == "reported" for _, name in figures_of(found)[0].legend) == there


def test_verdicts_and_names_are_text(tmp_path):
    table = [row(HOSTILE, verdict="MISSED", ours=0.9), row("absent", ours=None, verdict="-"),
             row("free", band="", verdict="-")]
    write(tmp_path, "pursuits", table)
    assert draw(tmp_path, "--out", tmp_path / "deep" / "plots") == 0
    text = (tmp_path / "deep" / "plots" / "index.html").read_text()
    page = Page(text)
    said = " ".join(page.text)
    assert "<script" not in text and HOSTILE in said and "0 of 1 bands met, 3 lines" in said
    assert "not run" in said and "missed" in said and ".59 ± .01" in said and "0.9 ± 0.02" in said
    ElementTree.parse(tmp_path / "deep" / "plots" / "pursuits_quick_pursuits.svg")


def test_full_before_quick_and_only(tmp_path):
    for name in ("width", "bias"):
        write(tmp_path, name)
        write(tmp_path, name, quick=False)
    names = lambda only: [e.folder.name for e in read_experiments(tmp_path, only, list(FIGURES))]
    assert names([]) == ["width", "width_quick", "bias", "bias_quick"]
    assert names(["bias"]) == ["bias", "bias_quick"]
    assert names(["bias_quick", "width"]) == ["width", "width_quick", "bias_quick"]
    assert draw(tmp_path, "--only", "bias_quick") == 0
    assert [p.name for p in (tmp_path / "plots").glob("*.svg")] == ["bias_quick_fig13.svg"]


def test_holes_in_the_numbers(tmp_path):
    """null where a number was not finite, curves of unlike lengths, matrices that are none, cells without numbers."""
    write(tmp_path, "unknown", cells=[
        cell("sae", 0, curve=curve(latent_mcc=[0.4, None, 0.6])), cell("sae", 1, curve=curve(latent_mcc=[0.2, 0.3])),
        cell("codes", 0, curve=None), cell("ito", latent_mcc=None)])
    write(tmp_path, "gram", cells=[cell("sae16", cosine_gram=[[1, 2], [3]], softmax_gram=[], **scores())])
    write(tmp_path, "width", cells=[])
    for name in ("frontier", "bias", "resampling", "topk_codes", "known_codes", "known_dictionary", "regimes"):
        write(tmp_path, name, cells=[cell(c["group"]) for c in cells_of(name)])
    assert draw(tmp_path) == 0
    found = read_experiment(tmp_path / "unknown_quick" / "result.json")
    mean = found.curve("sae", "latent_mcc")
    assert (mean.steps, mean.mean, mean.sd, mean.runs) == ([0], [pytest.approx(0.3)], [pytest.approx(0.1)], 2)
    assert found.value("ito", "latent_mcc") is None and found.value("none", "x") is None
    images = {path.stem for path in (tmp_path / "plots").glob("*.svg")}
    assert {"unknown_quick_fig4", "gram_quick_bands", "width_quick_bands", "bias_quick_bands"} <= images
    assert "nan" not in "".join(p.read_text() for p in (tmp_path / "plots").glob("*.svg"))


# ---- numbers to pixels ---------------------------------------------------------------------------

def test_flops_are_those_of_the_paper():
    """M 8, N 16, 1024 samples, one step: the seeds' own counts."""
    for hidden, fixed, learns, inference in (
            (0, 1392640, 1785856, 540672), (32, 5488640, 5881856, 1884160),
            (256, 39665664, 40058880, 13123584), (1024, 156844032, 157237248, 51658752)):
        shape = lab_flops.Shape(8, 16, 1024, hidden, False)
        assert lab_flops.encoder_step(shape) == fixed and lab_flops.encoder_inference(shape) == inference
        assert lab_flops.encoder_step(lab_flops.Shape(8, 16, 1024, hidden)) == learns
    assert lab_flops.coding_step(lab_flops.Shape(8, 16, 1024, learns=False)) == 51167232
    assert lab_flops.coding_step(lab_flops.Shape(8, 16, 1024)) == 52477952
    assert lab_flops.ito(lab_flops.Shape(8, 16, 1024), 10000) == 7209107456


def test_the_line_of_compressed_sensing():
    assert [round(line_of(n, 3), 2) for n in (16, 32, 64, 128)] == [10.04, 14.20, 18.36, 22.52]


def places(svg, kind):
    found = re.findall(rf'<circle class="dot {kind}" cx="([\d.]+)" cy="([\d.]+)"', svg)
    return [(float(a), float(b)) for a, b in found]


def test_points_stand_where_their_numbers_are():
    points = [Point(1, 0.2), Point(10, 0.4, 0.1), Point(100, 0.8)]
    trace = Trace("a", 0, points, marked=True, reported=[Point(10, 0.6)])
    svg = xy_chart("t", [trace], "x", log_x=True)
    (x0, y0), (x1, y1), (x2, y2) = places(svg, "s0")
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)  # decades
    assert (y0 - y1) * 2 == pytest.approx(y1 - y2, abs=0.2)
    reported = re.search(r'class="reported s0" d="M([\d.]+) ([\d.]+)L', svg)
    assert float(reported[1]) == pytest.approx(x1, abs=0.1)
    assert float(reported[2]) + 5 == pytest.approx((y1 + y2) / 2, abs=0.2)
    whisker = re.search(r'class="whisker s0" d="M[\d.]+ ([\d.]+)V([\d.]+)"', svg)
    assert float(whisker[1]) + float(whisker[2]) == pytest.approx(2 * y1, abs=0.2)


def test_what_cannot_be_on_a_log_axis_is_left_out():
    trace = Trace("a", 0, [Point(0, 1), Point(1, 0), Point(1, math.nan), Point(1, 1), Point(2, 10)], marked=True)
    assert len(places(xy_chart("t", [trace], "x", log_x=True, log_y=True), "s0")) == 2
    assert xy_chart("t", [Trace("a", 0, [Point(0, 1)], reported=[Point(1, 1)])], "x", log_x=True) == ""
    assert category_chart("t", ["a"], [Trace("a", 0, [Point(0, -1)])], log_y=True) == ""
    area = Area(Axis(0, 1), Axis(0.1, 10, True))
    below = area.whisker(Point(0, 1, 2), "s0")  # the lower end, which is none, stands at the point
    assert f" {area.b(1):.1f}V{area.b(3):.1f}" in below


def test_maps_have_the_lowest_row_at_the_bottom():
    tiles = [[Tile(0.5, "low"), Tile(-0.25, "x")], [Tile(None, "high"), Tile(2.0, "y")]]
    svg = map_chart("t", ["1", "2"], ["8", "16"], tiles, "N", "M", [(-3, 0), (0, 0), (1, 1), (9, 9)])
    assert svg.index(">low<") < svg.index(">high<")
    low, high = (float(re.search(rf'y="([\d.]+)" text-anchor="middle">{name}<', svg)[1]) for name in ("low", "high"))
    assert high < low
    fills = re.findall(r'tile (s0|s1)" fill-opacity="([\d.]+)"', svg)
    assert fills == [("s0", "0.250"), ("s1", "0.125"), ("s0", "0.500")]
    assert len(re.search(r'class="border" points="([^"]+)"', svg)[1].split()) == 2  # outside it is cut


@pytest.mark.parametrize(("text", "band"), [
    ("0.54 to 0.65", (0.54, 0.65)), (">= 0.95", (0.95, None)), ("<= 1e-06", (None, 1e-6)), ("-1 to 0", (-1.0, 0.0)),
    ("", (None, None)), ("3 or so", (None, None))])  # fmt: skip
def test_bands_of_tables(text, band):
    assert band_of(text) == band


def test_reported_of_tables():
    assert reported_of(".566 +- .011") == (0.566, 0.011) and reported_of("-.059") == (-0.059, 0)
    assert reported_of("4e-7") == (4e-7, 0) and reported_of("") is None and reported_of("about 3") is None


def test_rows_inside_and_outside_their_bands():
    rows = [row("in", 0.6), row("out", 9.0, "MISSED"), row("above", 0.96, band=">= 0.95", reported=""),
            row("none", band=""), row("fixed", 1.0, band="1 to 1", sd=0, reported="1"), row("not run", None, "-")]
    svg = rows_chart("t", rows)
    assert svg.count("<circle") == 4 and svg.count('class="band"') == 4 and "(off the scale)" in svg
    bands = [(float(x), float(x) + float(w))
             for x, w in re.findall(r'class="band" x="([\d.]+)" y="\d+" width="([\d.]+)"', svg)]
    dots = [float(x) for x in re.findall(r'class="dot s[01]" cx="([\d.]+)"', svg)]
    assert [low <= dot <= high + 0.1 for (low, high), dot in zip(bands, dots)] == [True, False, True, True]
    assert rows_chart("t", [row(ours=None)]) == "" and rows_chart("t", []) == ""


# ---- refusals ------------------------------------------------------------------------------------

def test_what_is_refused(tmp_path, repo_root):
    good = tmp_path / "good"
    folder = write(good, "frontier")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, text in (("torn", '{"experiment": '), ("list", "[]"), ("other", '{"fvu": 1}'),
                       ("rows", json.dumps({"experiment": "x", "table": [{"what": 1}]})),
                       ("cells", json.dumps({"experiment": "x", "table": [], "cells": [{"group": "a"}]})),
                       ("deep", "[" * 100000)):
        (tmp_path / name / "x").mkdir(parents=True)
        (tmp_path / name / "x" / "result.json").write_text(text)
    for words, code, part in (
            ([tmp_path / "none"], 2, "there is no folder"), ([tmp_path / "empty"], 3, "looked for"),
            ([folder], 2, "is the folder of one experiment"), ([tmp_path / "torn"], 3, "cannot read"),
            ([tmp_path / "deep"], 3, "cannot read"), ([tmp_path / "list"], 3, "no JSON object"),
            ([tmp_path / "other"], 3, "no result of megadict lab run"), ([tmp_path / "rows"], 3, "table[0]"),
            ([tmp_path / "cells"], 3, "cells[0]"), ([good, "--only", "fronteir"], 2, "did you mean 'frontier'?"),
            ([good, "--only", "zzz"], 2, "there are frontier_quick"),
            ([good, "--out", tmp_path / "file"], 2, "cannot write"),
            ([good, "--out", tmp_path / "file" / "x"], 2, "cannot write"),
            ([good, "--uot", "x"], 2, "did you mean --out?"), ([], 2, "OUT")):
        done = subprocess.run([sys.executable, repo_root / "tools" / "lab_plots.py", *map(str, words)],
                              capture_output=True, text=True, timeout=60)  # fmt: skip
        assert done.returncode == code, (words, done.stderr)
        assert part in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (good / "plots").exists()


# ---- the real thing ------------------------------------------------------------------------------

def test_of_the_laboratory(megadict_bin, tmp_path):
    words = ["lab", "run", "all", "--quick", "--seeds", 1, "--samples", 64, "--steps", 600, "--out", tmp_path]
    done = run(megadict_bin, words)
    assert done.returncode == 0, done.stderr
    assert draw(tmp_path) == 0
    images = {path.stem.rsplit("_quick_", 1)[0] for path in (tmp_path / "plots").glob("*.svg")}
    assert images >= set(FIGURES) and not list((tmp_path / "plots").glob("*_bands.svg"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(width, scheme, all_results, browser, tmp_path):  # noqa: F811
    assert draw(all_results) == 0
    browser.errors.clear()
    browser.open(all_results / "plots" / "index.html", width, scheme)
    assert browser.value("document.documentElement.scrollWidth") <= width, browser.value(WIDER)
    assert browser.value(WIDER) == []
    ratio, where = browser.value(CONTRAST)
    assert ratio >= 4.5, where
    assert browser.errors == []
