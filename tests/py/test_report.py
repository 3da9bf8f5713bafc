"""report.py: what stands on the page, and how it looks in a browser, wide and narrow, light and dark."""

import json
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pytest

import report
import training
from chromium import Chromium
from megadict_tools.charts import Axis, Series, line_chart, short
from megadict_tools.errors import main_guard
from megadict_tools.run_folder import short_names
from harvest_cases import model_folder, run, text_file  # noqa: F401

HOSTILE = "<script>alert(1)</script>&\""


def write_page(*arguments) -> int:
    return main_guard("report", lambda: report.main([str(a) for a in arguments]))


def config(**values):
    base = {"data.path": "acts", "model.n_latents": 2048, "model.k": 32, "model.activation": "topk",
            "optim.lr": 0.003, "run.dir": "runs/x", "dead.window_tokens": 50000}
    given = {name.replace("__", "."): value for name, value in values.items()}
    return {name: {"value": value, "source": "command line" if name in given else "default"}
            for name, value in (base | given).items()}


def write_run(folder: Path, steps=120, k=32, fvu=0.1, evaluated=True, **fields):
    """A run folder as megadict train leaves it."""
    folder.mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        at = {"step": step * 10, "tokens": step * 20480}
        lines.append(at | {
            "fvu": fvu + 0.6 * 0.95**step, "l0": float(k), "dead_pct": None if step < 20 else 8 / step,
            "lr": 0.003, "grad_norm": 0.02, "tokens_per_s": 9000.0 + step,
            "losses/auxiliary_reconstruction_loss": 0.0 if step < 20 else 0.01, "losses/l1_loss": 0.0})
        if evaluated and step % 40 == 0:
            lines.append(at | {"eval/fvu": fvu + 0.02, "eval/l0": float(k), "eval/dead_pct": 4.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps(config(model__k=k, **fields)))
    (folder / "env.json").write_text(json.dumps({"command": ["--model.k", str(k)], "processor": "P"}))
    if evaluated:
        counts = [0] * 40
        counts[0], counts[26:34] = 55, [5, 40, 300, 700, 600, 250, 90, 8]
        (folder / "eval.json").write_text(json.dumps({
            "rows": 6554, "fvu": fvu + 0.02, "explained_variance": 0.98 - fvu, "l0": float(k),
            "dead_pct": 2.7, "step": steps * 10, "tokens": steps * 20480,
            "feature_density": {"log10_from": -10.0, "width": 0.25, "counts": counts}}))
    return folder


def write_loss(path: Path, name="runs/a"):
    path.write_text(json.dumps({
        "model": "SmolLM2", "hook": "blocks.9.hook_resid_post", "data": "acts/eval", "windows": 9,
        "tokens": 16391, "rows": 16500, "ce_clean": 2.69, "ce_zero": 11.2, "ce_mean": 8.11,
        "kl_zero": 8.6, "kl_mean": 5.5, "dictionaries": [{
            "dictionary": name, "format": "run", "n_latents": 2048, "ce": 3.02, "kl": 0.33,
            "ce_loss_score": 0.9612, "ce_loss_score_mean": 0.9391, "kl_div_score": 0.96,
            "kl_div_score_mean": 0.94, "fvu": 0.12, "l0": 32.0}]}))
    return path


class Page(HTMLParser):
    """Tags, text, and whether every tag is closed where it must be."""

    VOID = {"meta", "link", "input", "br"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.text, self.ids = [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


# ---- what stands on it ---------------------------------------------------------------------------

def test_one_run(tmp_path):
    folder = write_run(tmp_path / "runs" / "a")
    write_loss(folder / "loss_recovered.json")
    assert write_page(folder, "--out", tmp_path / "a.html") == 0
    text = (tmp_path / "a.html").read_text()
    page = Page(text)
    said = " ".join(page.text)
    for words in ("0.1200", "32.0", "2.7 %", "on 6,554 held-out rows", "0.961", "0.939", "8.1100",
                  "55 more never fire", "command line", "--model.k 32", "Dead latents, %"):
        assert words in said, words
    assert "Active latents per row (L0)</h3>" not in text  # it does not vary
    assert "L1 loss" not in said and "AuxK loss" in said
    assert len(page.ids) == len(set(page.ids))
    assert {a["href"] for tag, a in page.tags if tag == "a"} <= {"#" + i for i in page.ids}
    svgs = [a for tag, a in page.tags if tag == "svg"]
    assert svgs and all(a["role"] == "img" and a["aria-label"] for a in svgs)
    assert sum(tag == "table" for tag, _ in page.tags) == sum(tag == "caption" for tag, _ in page.tags)
    assert not re.search(r"(src|href)=\"(https?:)?//|@import|url\(", text)


def test_several_runs(tmp_path):
    folders = [write_run(tmp_path / "runs" / f"k{k}", k=k, fvu=2 / k) for k in (16, 32, 64)]
    assert write_page(*folders, "--out", tmp_path / "a.html", "--title", "Three") == 0
    text = (tmp_path / "a.html").read_text()
    page = Page(text)
    assert "<h1>Three</h1>" in text
    assert text.count('class="best"') == 1 and ">0.0513<" in text.split('class="best"')[1][:20]
    assert "Quality against cost" in text and "Active latents per row (L0)</h3>" in text
    differing = text.split("Fields in which the runs differ.")[2]
    assert "model.k" in differing.split("</table>")[0] and "optim.lr" not in differing.split("</table>")[0]
    assert sum(tag == "details" for tag, _ in page.tags) == 3


def test_a_run_that_has_only_begun(tmp_path):
    folder = write_run(tmp_path / "a", steps=1, evaluated=False)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "tok')  # being written
    assert write_page(folder, "--out", tmp_path / "a.html") == 0
    said = " ".join(Page((tmp_path / "a.html").read_text()).text)
    assert "not evaluated yet" in said and "nan" not in said.lower().split()


def test_text_of_others_is_only_text(tmp_path):
    folder = write_run(tmp_path / "a", optim__note=HOSTILE)
    write_loss(tmp_path / "l.json", HOSTILE.replace("/", ""))
    assert write_page(folder, "--out", tmp_path / "a.html", "--title", HOSTILE, "--loss",
                      tmp_path / "l.json") == 0
    text = (tmp_path / "a.html").read_text()
    Page(text)
    assert text.count("<script>") == 1 and "alert(1)</script>" not in text


def test_short_names():
    assert short_names(["/x/runs/a", "/x/runs/b"]) == ["a", "b"]
    assert short_names(["/x/1/run", "/x/2/run"]) == ["1/run", "2/run"]
    assert short_names(["/x/a", "/x/a"]) == ["a", "a"]


@pytest.mark.parametrize("values, log", [([0.07, 0.4], True), ([1e-7, 3], True), ([5, 5], False),
                                         ([0, 97_000], False), ([-10, 0], False), ([0.1, 0.1], True),
                                         ([float("nan")], False), ([], True)])
def test_axes_hold_their_values(values, log):
    axis = Axis.over(values, log)
    finite = [v for v in values if v == v]
    assert axis.low < axis.high and all(axis.low <= v <= axis.high for v in finite)
    assert 1 <= len(axis.ticks) <= 9 and all(axis.low <= t <= axis.high for t in axis.ticks)
    assert len({short(t) for t in axis.ticks}) == len(axis.ticks)


def test_lines_break_where_a_value_is_unknown():
    chart = line_chart("t", [Series("a", [(1, 2.0), (2, float("nan")), (3, 1.0), (4, 1.5)], 0)], "x")
    assert chart.count("<polyline") == 2 and "nan" not in chart


def test_refusals(tmp_path, capfd):
    def refused(code, words, *arguments):
        capfd.readouterr()
        assert write_page(*arguments) == code
        error = capfd.readouterr().err
        assert words in error and error.startswith("report: ") and error.count("\n") == 1, error

    good, out = write_run(tmp_path / "good"), tmp_path / "r.html"
    refused(3, "cannot read", tmp_path / "none", "--out", out)
    refused(2, "there is no folder", good, "--out", tmp_path / "no" / "r.html")
    refused(2, "it is a folder", good, "--out", tmp_path)
    deep = write_run(tmp_path / "deep")
    (deep / "config.json").write_text("[" * 100000)
    refused(3, "deep/config.json'", deep, "--out", out)
    (deep / "metrics.jsonl").write_text("null\n")
    refused(3, "no object with an integer 'step'", deep, "--out", out)
    refused(2, "names 2 files for 1 runs", good, "--out", out, "--latents", "a", "b")
    refused(3, "cannot read", good, "--out", out, "--latents", tmp_path / "none.h5")
    refused(2, "was not written by", good, "--out", out, "--loss", good / "eval.json")
    refused(2, "unknown argument '--outt'", good, "--outt", out)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").write_text("")
    refused(3, "has no line yet", tmp_path / "empty", "--out", out)
    (tmp_path / "empty" / "metrics.jsonl").write_text("[1]\n")
    refused(3, "near byte 0", tmp_path / "empty", "--out", out)
    assert not out.exists()


# ---- latents -------------------------------------------------------------------------------------

def write_latents(path: Path, shards: Path, count=40, top=3):
    """As megadict eval --latents: latent j is strongest on row 5j, then on the two rows behind it."""
    tokens = np.concatenate([h5py.File(p)["tokens"][:] for p in sorted(shards.glob("*.h5"))])
    rows = (np.arange(count)[:, None] * 5 + np.arange(top)).clip(max=len(tokens) - 1)
    fired = np.arange(count)[::-1] * 2
    rows[fired == 0] = -1
    with h5py.File(path, "w") as file:
        file["fired"], file["frequency"] = fired, (fired / len(tokens)).astype("f4")
        file["mean"], file["max"] = np.full(count, 1.5, "f4"), np.full(count, 9.25, "f4")
        file["top_rows"], file["top_values"] = rows, np.full((count, top), 9.25, "f4")
        file["top_tokens"] = np.where(rows < 0, 0, tokens[rows]).astype("u4")
        file["nearest"] = (np.arange(count) + 1) % count
        file["nearest_cosine"] = np.full(count, 0.25, "f4")
        file.attrs["rows"], file.attrs["data"] = len(tokens), str(shards)
    return path


@pytest.fixture
def latents(run, tmp_path):
    assert run("--eval_fraction", 0.3)[0] == 0
    return write_latents(tmp_path / "latents.h5", tmp_path / "out" / "eval")


def test_latents_in_text(latents, model_folder, tmp_path):
    import transformers

    folder = write_run(tmp_path / "a")
    assert write_page(folder, "--out", tmp_path / "a.html", "--latents", latents, "--model",
                      model_folder("gpt2"), "--latents_shown", 10) == 0
    text = (tmp_path / "a.html").read_text()
    Page(text)
    assert "10 of 40 latents" in text and text.count("<mark>") >= 10
    assert "#</span>39<" not in text  # it never fired
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder("gpt2"))
    with h5py.File(latents) as file:
        token = tokenizer.decode([int(file["top_tokens"][0, 0])])
    first = text.split("#</span>0<")[1].split("</tr>")[0]
    assert f"<mark>{token.strip() or '␣' * len(token)}</mark>" in first
    assert first.count("<mark>") == 1  # three rows of one window

    assert write_page(folder, "--out", tmp_path / "b.html", "--latents", latents) == 0
    assert "<mark>" not in (tmp_path / "b.html").read_text()


def test_latents_of_other_rows_are_refused(latents, model_folder, tmp_path, capfd):
    folder = write_run(tmp_path / "a")
    words = [folder, "--out", tmp_path / "a.html", "--latents", latents, "--model", model_folder("gpt2")]
    assert write_page(*words, "--data", tmp_path / "out") == 2
    assert "other rows than those" in capfd.readouterr().err
    with h5py.File(latents, "r+") as file:
        file.attrs["rows"] = 10**9
    assert write_page(*words) == 2
    assert "speaks of 1,000,000,000 rows" in capfd.readouterr().err


def test_what_the_binary_says_of_latents(run, model_folder, megadict_bin, tmp_path):
    assert run("--eval_fraction", 0.3)[0] == 0
    data, folder = tmp_path / "out", tmp_path / "run"
    assert training.run(megadict_bin, training.train_words(data, folder, data__tokens=101 * 20)).returncode == 0
    done = training.run(megadict_bin, ["eval", "--run.dir", folder, "--data.path", data, "--latents",
                                       folder / "latents.h5"])
    assert done.returncode == 0, done.stderr
    assert write_page(folder, "--out", tmp_path / "a.html", "--model", model_folder("gpt2")) == 0
    text = (tmp_path / "a.html").read_text()
    Page(text)
    assert "of 67 latents" in text and "<mark>" in text and "Fields that were given." in text


# ---- in a browser --------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Chromium(tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()


def pixels(png: bytes) -> np.ndarray:
    """[height, width, 3 or 4] of an 8-bit PNG as Chromium writes it."""
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert depth == 8 and kind in (2, 6)
    channels, data, at = (3 if kind == 2 else 4), b"", 8
    while at < len(png):
        length, name = struct.unpack(">I4s", png[at:at + 8])
        data += png[at + 8:at + 8 + length] if name == b"IDAT" else b""
        at += 12 + length
    raw = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, -1)
    rows, before = raw[:, 1:].astype(np.int32), np.zeros(width * channels, np.int32)
    for y, filtering in enumerate(raw[:, 0]):
        rows[y] = before = _unfiltered(rows[y], before, int(filtering), channels)
    return rows.reshape(height, width, channels).astype(np.uint8)


def _unfiltered(row, above, filtering, channels):
    if filtering == 0:
        return row
    if filtering == 2:
        return (row + above) & 255
    out = row.copy()
    for i in range(len(row)):
        a = int(out[i - channels]) if i >= channels else 0
        b, c = int(above[i]), int(above[i - channels]) if i >= channels else 0
        if filtering == 1:
            guess = a
        elif filtering == 3:
            guess = (a + b) // 2
        else:
            p = a + b - c
            guess = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
        out[i] = (row[i] + guess) & 255
    return out


CONTRAST = """(() => {
  const light = (c) => { const v = c.map((x) => (x /= 255) <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
                         return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
                          if (c.length < 4 || c[3] > 0) return c.slice(0, 3); } return [255, 255, 255]; };
  let worst = [99, ""];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), svg = e.namespaceURI.endsWith("svg");
    if (svg && e.tagName === "title" || ["SCRIPT", "STYLE"].includes(e.tagName)) continue;
    const a = light(rgb(svg ? style.fill : style.color).slice(0, 3)), b = light(behind(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < worst[0]) worst = [ratio, e.tagName + " " + e.className + ": " + e.textContent.slice(0, 40)];
  }
  return worst;
})()"""

WIDER = """[...document.querySelectorAll("body *")].filter((e) => !e.closest(".scroll") &&
  !e.closest(".hidden") && e.getBoundingClientRect().right > innerWidth + .5).map((e) => e.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of one run with everything on it, and one of eight runs."""
    folder = tmp_path_factory.mktemp("pages")
    one = write_run(folder / "runs" / "a-run-with-quite-a-long-name-that-does-not-break-anywhere")
    write_loss(one / "loss_recovered.json")
    many = [write_run(folder / "runs" / f"k{k}", k=k, fvu=2 / k) for k in range(16, 144, 16)]
    assert write_page(*many, "--out", folder / "many.html") == 0
    return {"one": (one, folder / "one.html"), "many": (many, folder / "many.html")}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["one", "many"])
def test_in_a_browser(name, width, scheme, pages, browser, latents, model_folder, tmp_path):
    folder, page = pages[name]
    if name == "one":
        assert write_page(folder, "--out", page, "--latents", latents, "--model",
                          model_folder("gpt2")) == 0
    browser.errors.clear()
    browser.open(page, width, scheme)
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth") <= width, browser.value(WIDER)
    assert browser.value(WIDER) == []
    ratio, where = browser.value(CONTRAST)
    assert ratio >= 4.5, where
    assert browser.value("Math.min(...[...document.querySelectorAll('svg')].map((e) => "
                         "e.getBoundingClientRect().height))") > 100
    shot = pixels(browser.screenshot(tmp_path / f"{name}-{width}-{scheme}.png", whole=False))
    grey = shot[..., :3].mean(axis=2)
    assert (grey.mean() > 128) == (scheme == "light")
    background = np.bincount(grey.astype(int).ravel()).argmax()
    assert 0.02 < (np.abs(grey - background) > 40).mean() < 0.6  # neither blank nor solid
    assert browser.errors == []


def test_sorting_and_searching(pages, browser, latents, model_folder):
    folder, page = pages["one"]
    assert write_page(folder, "--out", page, "--latents", latents, "--model", model_folder("gpt2")) == 0
    browser.open(page, 1280, "light")
    first = "document.querySelector('table.latents tbody tr th').textContent"
    assert browser.value(first) == "#0"
    press = "document.querySelector('table.latents thead button').click()"
    browser.value(press)
    assert browser.value(first) == "#38"  # 39 never fired
    browser.value(press)
    assert browser.value(first) == "#0"
    shown = browser.value("(() => { const s = document.querySelector('input[type=search]'); s.value = "
                          "'#17'; s.dispatchEvent(new Event('input')); return "
                          "[...document.querySelectorAll('table.latents tbody tr')].filter((r) => "
                          "r.getClientRects().length).length; })()")
    assert shown == 1 and browser.errors == []
