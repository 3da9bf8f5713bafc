"""The frontier tool on evaluations that are written by hand."""

import csv
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

POINTS = {"a": (8, 0.30), "b": (16, 0.20), "c": (16, 0.25), "d": (32, 0.10), "e": (40, 0.10)}


def frontier(repo_root, *words):
    return subprocess.run([sys.executable, str(repo_root / "tools" / "frontier.py"), *map(str, words)],
                          capture_output=True, text=True, timeout=60)  # fmt: skip


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    for name, (l0, fvu) in POINTS.items():
        (folder / name / "final").mkdir(parents=True)
        facts = {"rows": 100, "fvu": fvu, "l0": l0, "explained_variance": 1 - fvu, "dead_pct": None}
        for place in (folder / name / "final", folder / name):  # as a run leaves them
            (place / "eval.json").write_text(json.dumps(facts))
        (folder / name / "config.json").write_text("{}")
    return folder


def test_table_csv_and_plot(repo_root, runs, tmp_path):
    done = frontier(repo_root, runs, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["name", *POINTS]
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert {row["name"] for row in rows if row["frontier"] == "1"} == {"a", "b", "d"}
    assert [float(row["fvu"]) for row in rows] == [fvu for _, fvu in POINTS.values()]
    svg = ElementTree.parse(tmp_path / "out.svg").getroot()
    assert len(svg.findall("{*}circle")) == len(POINTS)


def test_one_point_is_a_frontier(repo_root, runs, tmp_path):
    done = frontier(repo_root, runs / "a", "--out", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].endswith("*")
    ElementTree.parse(tmp_path / "one.svg")


def test_what_is_refused(repo_root, runs, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "eval.json").write_text('{"fvu": ')
    (tmp_path / "null").mkdir()
    (tmp_path / "null" / "eval.json").write_text('{"fvu": null, "l0": 3, "rows": 5}')
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "eval.json").write_text("[" * 100000)
    for words, code, part in (([tmp_path / "none"], 2, "no folder"), ([tmp_path / "empty"], 3, "no evaluation"),
                              ([tmp_path / "torn"], 3, "cannot read"), ([tmp_path / "null"], 3, "is no number"),
                              ([runs, "--out", tmp_path / "no" / "x"], 2, "cannot write"), ([runs, "--out", ""], 2, "names no file"),
                              ([tmp_path / "deep"], 3, "cannot read"),
                              ([runs, "--uot", "x"], 2, "did you mean --out?"), ([], 2, "FOLDER")):
        done = frontier(repo_root, *words)
        assert done.returncode == code, done.stderr
        assert part in done.stderr and len(done.stderr.splitlines()) == 1
