"""eval, encode and compare as a user meets them: what they write, on every mesh, and what they refuse."""

import json
import math

import h5py
import numpy as np
import pytest
from test_cli_refusals import BAD_DATA, USAGE, refused
from training import run, synth, train_words

ROWS = 400


@pytest.fixture(scope="module")
def place(megadict_bin, tmp_path_factory):
    """Two runs of unlike widths and a data set with documents beside the synthetic one."""
    folder = tmp_path_factory.mktemp("eval")
    synth(megadict_bin, folder / "acts", rows=3000)
    for name, latents, seed in (("a", 67, 1), ("b", 130, 2)):
        words = train_words(folder / "acts", folder / name, model__n_latents=latents, run__seed=seed,
                            data__tokens=101 * 29)
        done = run(megadict_bin, words)
        assert done.returncode == 0, done.stderr
    rows = np.random.default_rng(0).standard_normal((ROWS, 24), np.float32)
    with h5py.File(folder / "rows.h5", "w") as file:
        file["activations"] = rows
        file["tokens"] = np.arange(ROWS, dtype=np.uint32) + 1000
        file["position"] = np.arange(ROWS, dtype=np.uint32) % 8
        file["document"] = np.arange(ROWS, dtype=np.uint32) // 8
    done = run(megadict_bin, ["data", "import", "--from", folder / "rows.h5", "--out", folder / "docs",
                              "--eval_fraction", 0])
    assert done.returncode == 0, done.stderr
    return folder


def evaluated(binary, place, ranks=1, *words):
    out = place / f"eval_{ranks}.json"
    done = run(binary, ["eval", "--run.dir", place / "a", "--data.path", place / "docs", "--json", out, *words],
               ranks)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def flat(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_every_mesh_prints_the_same(megadict_bin, place):
    words = ["--eval.resamples", 50, "--eval.peer_batch", 64]
    want = dict(flat(evaluated(megadict_bin, place, 1, *words)))
    assert want["peers.sparsify.fvu"] != want["fvu"]
    assert want["bootstrap.units"] == ROWS / 8
    for ranks, mesh in ((2, (2, 1)), (3, (1, 3)), (4, (2, 2)), (6, (3, 2))):
        more = ["--mesh.data", mesh[0], "--mesh.feature", mesh[1], "--data.batch_size", 7]
        got = dict(flat(evaluated(megadict_bin, place, ranks, *words, *more)))
        assert got.keys() == want.keys()
        for name, value in want.items():
            if isinstance(value, float):
                assert math.isclose(got[name], value, rel_tol=1e-12, abs_tol=1e-12), name
            else:
                assert got[name] == value, name


METHODS = ["mp", "gp", "omp", "fista", "lca", "lars", "lars_refit", "refit"]


def test_inference_is_the_same_on_every_mesh(megadict_bin, place):
    words = ["--eval.inference", ",".join(METHODS), "--eval.inference_rows", 101]
    want = evaluated(megadict_bin, place, 1, *words)["inference"]
    assert want["rows"] == 101
    rows = {row["method"]: row for row in want["methods"]}
    assert list(rows) == ["encoder", *METHODS]
    assert rows["omp"]["k"] == 3 and rows["omp"]["lambda"] is None
    assert rows["omp"]["fvu"] < rows["refit"]["fvu"] < rows["encoder"]["fvu"]
    assert rows["lars"]["k"] is None and rows["lars"]["l0"] == pytest.approx(rows["encoder"]["l0"], rel=0.01)
    assert rows["lca"]["lambda"] > 0 and rows["lca"]["l0"] == pytest.approx(rows["encoder"]["l0"], rel=0.05)
    for row in want["methods"]:
        assert row["share_of_encoder_fvu"] == pytest.approx(row["fvu"] / rows["encoder"]["fvu"])
        assert row.pop("seconds_per_1000_rows") >= 0 and row.pop("search_seconds") >= 0
    for ranks, mesh in ((3, (1, 3)), (4, (2, 2))):
        more = ["--mesh.data", mesh[0], "--mesh.feature", mesh[1], "--data.batch_size", 7, "--eval.metrics", "l0"]
        got = evaluated(megadict_bin, place, ranks, *words, *more)["inference"]
        for row in got["methods"]:
            del row["seconds_per_1000_rows"], row["search_seconds"]
        assert got == want


def test_each_mode_of_lca_is_the_same_on_every_mesh(megadict_bin, place):
    words = ["--eval.inference", "lca,lca_sum,lca_ista", "--eval.inference_lambda", 0.25, "--eval.metrics", "l0"]

    def rows(ranks, data, feature):
        mesh = ["--mesh.data", data, "--mesh.feature", feature, "--eval.inference_rows", 37]
        found = evaluated(megadict_bin, place, ranks, *words, *mesh)["inference"]["methods"]
        return [{key: value for key, value in row.items() if "seconds" not in key} for row in found]

    want = rows(1, 1, 1)
    assert [row["method"] for row in want] == ["encoder", "lca", "lca_sum", "lca_ista"]
    assert all(0 < row["fvu"] < 1 and row["lambda"] == 0.25 for row in want[1:])
    for mesh in ((2, 2, 1), (3, 1, 3), (4, 2, 2), (6, 2, 3)):
        assert rows(*mesh) == want


def test_inference_prints_a_table(megadict_bin, place):
    words = ["eval", "--run.dir", place / "a", "--data.path", place / "docs", "--eval.metrics", "l0"]
    done = run(megadict_bin, [*words, "--eval.inference", "lars", "--eval.inference_lambda", 0.25])
    assert done.returncode == 0, done.stderr
    assert f"codes of the first {ROWS} rows" in done.stdout
    assert [line.split()[:3] for line in done.stdout.splitlines() if line.startswith("lars")] == [
        ["lars", "lambda", "0.25"]
    ]


@pytest.mark.parametrize(
    "words, part",
    [
        (["--eval.inference", "opm"], "there is no method 'opm'"),
        (["--eval.inference", "omp,larz"], "did you mean 'lars'?"),
        (["--eval.inference", "omp,"], "there is no method ''"),
        (["--eval.inference", "omp,omp"], "'omp' is listed twice"),
        (["--eval.inference", "lca_sun"], "did you mean 'lca_sum'?"),
        (["--eval.inference", "lca", "--eval.inference_lambda", "inf"], "eval.inference_lambda = 'inf'"),
        (["--eval.inference", "lars", "--eval.inference_lambda", "-1"], "eval.inference_lambda = '-1'"),
        (["--eval.inference", "lars", "--eval.inference_lambda", "nan"], "eval.inference_lambda = 'nan'"),
        (["--eval.inference", "omp", "--eval.inference_lambda", "1"], "no method of eval.inference 'omp' takes one"),
        (["--eval.inference", "omp", "--eval.inference_rows", "0"], "eval.inference_rows = '0'"),
    ],
)
def test_inference_that_makes_no_sense_is_refused(megadict_bin, place, words, part):
    refused(megadict_bin, place, ["eval", "--run.dir", "a", "--data.path", "docs", *words], USAGE, part)


def test_named_metrics_alone(megadict_bin, place):
    got = evaluated(megadict_bin, place, 1, "--eval.metrics", "mse,l0")
    assert {"mse", "l0", "peers", "checkpoint"} <= got.keys()
    assert "fvu" not in got and "feature_density" not in got
    assert set(got["peers"]) == {"saebench.mse", "dictionary_learning.l2_loss"}


def test_documents_lie_in_the_interval(megadict_bin, place):
    got = evaluated(megadict_bin, place, 1, "--eval.resamples", 200, "--eval.confidence", 0.99)
    for name, interval in got["bootstrap"]["intervals"].items():
        assert interval["low"] <= got[name] <= interval["high"], name
    assert got["bootstrap"]["unit"] == "document"


def test_latents_file(megadict_bin, place, tmp_path):
    out = tmp_path / "latents.h5"
    evaluated(megadict_bin, place, 2, "--latents", out, "--latents.top", 5)
    with h5py.File(out) as file:
        assert file["fired"].shape == (67,) and file["top_rows"].shape == (67, 5)
        assert file["fired"][:].sum() == 3 * ROWS
        assert np.allclose(file["frequency"][:], file["fired"][:] / ROWS)
        rows, tokens = file["top_rows"][:], file["top_tokens"][:]
        assert (tokens[rows >= 0] == rows[rows >= 0] + 1000).all()
        assert (file["top_document"][:][rows >= 0] == rows[rows >= 0] // 8).all()
        assert (np.diff(file["top_values"][:]) <= 0).all()
        nearest = file["nearest"][:]
        assert (nearest != np.arange(67)).all() and nearest.min() >= 0 and nearest.max() < 67


@pytest.mark.parametrize("flag", ["run.dir", "dictionary"])
def test_codes_of_every_mesh_are_one_file(megadict_bin, place, tmp_path, flag):
    source = place / "a"
    if flag == "dictionary":
        source = tmp_path / "exported"
        done = run(megadict_bin, ["export", "--run.dir", place / "a", "--format", "saelens", "--out", source])
        assert done.returncode == 0, done.stderr
    files = []
    for ranks in (1, 2, 3, 4, 6):
        out = tmp_path / f"codes_{ranks}.h5"
        words = ["encode", f"--{flag}", source, "--data.path", place / "docs", "--out", out, "--data.batch_size", 90]
        done = run(megadict_bin, words, ranks)
        assert done.returncode == 0, done.stderr
        files.append(out.read_bytes())
    assert all(content == files[0] for content in files)
    with h5py.File(out) as file:
        assert file["row_ptr"][:].tolist() == list(range(0, 3 * ROWS + 1, 3))
        assert file["indices"].shape == file["values"].shape == (3 * ROWS,)
        assert file.attrs["n_latents"] == 67 and file.attrs["format"] == "megadict.codes"
        assert (file["document"][:] == np.arange(ROWS) // 8).all()


def test_compare(megadict_bin, place, tmp_path):
    out = tmp_path / "compare.json"
    done = run(megadict_bin, ["compare", place / "a", place / "a", place / "b", "--data.path", place / "docs", "--json",
                              out])
    assert done.returncode == 0, done.stderr
    same, other = json.loads(out.read_text())["pairs"]
    for name in ("mcc", "mcc_cosine", "mmcs_ab", "mcc_codes_alive"):
        assert same[name] == pytest.approx(1, abs=1e-6)
        assert other[name] < 0.99
    assert same["splitting"][-1]["parents_by_children"][1] >= 60
    assert all(sum(row["parents_by_children"]) == 67 for row in other["splitting"])
    assert other["pairs"] == 67 and other["mcc_codes"] > other["mcc_codes_by_chance"]


def test_compare_with_the_planted_dictionary(megadict_bin, place, tmp_path):
    out = tmp_path / "compare.json"
    done = run(megadict_bin, ["compare", place / "acts", place / "a", "--json", out])
    assert done.returncode == 0, done.stderr
    pair = json.loads(out.read_text())["pairs"][0]
    judged = evaluated(megadict_bin, place, 1, "--eval.truth", place / "acts")
    for name in ("mcc", "mcc_cosine", "mmcs_ab", "mmcs_ba", "random_mcc"):
        assert pair[name] == pytest.approx(judged[name], rel=1e-9)


REFUSED = [
    (["eval", "--run.dir", "a", "--data.path", "docs", "--eval.metrics", "fvu,mze"], USAGE,
     "there is no metric 'mze'; allowed: rows, fvu,", "did you mean 'mse'?"),
    (["eval", "--run.dir", "nowhere", "--data.path", "docs"], USAGE, "nowhere"),
    (["eval", "--run.dir", "a", "--data.path", "nowhere"], BAD_DATA, "nowhere"),
    (["eval", "--run.dir", "a", "--data.path", "narrow"], BAD_DATA, "has width 24, the rows of 'narrow/eval' have 8"),
    (["eval", "--run.dir", "a", "--data.path", "acts", "--eval.resamples", "9"], BAD_DATA,
     "has no column 'document'", "--eval.resample_block 512"),
    (["eval", "--run.dir", "a", "--data.path", "docs", "--eval.resamples", "9", "--eval.tokens", "8"], BAD_DATA,
     "all rows are of 1 document"),
    (["eval", "--run.dir", "a", "--data.path", "docs", "--latents", "no/l.h5"], USAGE, "there is no folder 'no'"),
    (["eval", "--run.dir", "a", "--data.path", "docs", "--json", "docs"], USAGE, "cannot write 'docs': it is a folder"),
    (["encode", "--data.path", "docs", "--out", "c.h5"], USAGE, "either --run.dir or --dictionary"),
    (["encode", "--run.dir", "a", "--dictionary", "a", "--data.path", "docs", "--out", "c.h5"], USAGE, "either"),
    (["encode", "--run.dir", "a", "--data.path", "narrow", "--out", "c.h5"], BAD_DATA, "have 8"),
    (["encode", "--run.dir", "a", "--data.path", "docs", "--out", "no/c.h5"], USAGE, "there is no folder 'no'"),
    (["compare", "a"], USAGE, "B"),
    (["compare", "a", "nowhere"], USAGE, "nowhere"),
    (["compare", "a", "narrow"], BAD_DATA, "has width 24, that in 'narrow' has 8"),
    (["compare", "acts", "a", "--data.path", "docs"], USAGE, "'acts' is a planted dictionary"),
    (["compare", "a", "b", "--data.path", "narrow"], BAD_DATA, "have 8"),
]


@pytest.fixture(scope="module")
def narrow(megadict_bin, place):
    synth(megadict_bin, place / "narrow", rows=100, d=8)
    return place


@pytest.mark.parametrize("args, code, parts", [(a, c, p) for a, c, *p in REFUSED],
                         ids=[" ".join(row[0]) for row in REFUSED])
def test_refusals(megadict_bin, narrow, args, code, parts):
    refused(megadict_bin, narrow, args, code, *parts)


def test_compare_is_one_process(megadict_bin, narrow):
    refused(megadict_bin, narrow, ["compare", "a", "b"], USAGE, "not as 2 ranks", ranks=2)
