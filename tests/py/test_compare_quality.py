"""compare_quality.py: its batches, its FVU, its drivers of the peers, its refusals."""

import json

import h5py
import numpy as np
import pytest
import torch

import compare_quality
import peers
from megadict_tools.errors import main_guard

WIDTH, N, K = 16, 64, 4


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Sparse sums of 48 directions, with a mean."""
    random = np.random.default_rng(0)
    atoms = random.normal(size=(48, WIDTH))
    codes = random.exponential(size=(4096, 48)) * (random.random((4096, 48)) < 3 / 48)
    return (codes @ atoms + 2).astype(np.float32)


@pytest.fixture
def raw_file(rows, tmp_path):
    rows.tofile(tmp_path / "rows.bin")
    return tmp_path / "rows.bin"


def run(*arguments) -> int:
    return main_guard("compare_quality", lambda: compare_quality.main([str(a) for a in arguments]))


def small(raw_file, *more):
    return ("--data", raw_file, "--width", WIDTH, "--window", 64, "--eval_windows", 8, "--n", N,
            "--k", K, "--batch", 256, "--steps", 60, "--threads", 1, *more)


def test_batches_are_permutations_in_a_row():
    rows = torch.arange(10)[:, None]
    seen = torch.cat(list(compare_quality.batches(rows, 4, 5, seed=3))).flatten().tolist()
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:] != list(range(10))


def test_fvu_is_about_the_mean_of_all_rows(rows):
    held_out = torch.from_numpy(np.sort(rows, axis=0))  # batches of very unlike rows

    def reconstruct(x):
        return x * 0.9, torch.ones(len(x), N, dtype=torch.bool)

    found = peers.measure(reconstruct, held_out, N, block=100)
    x = held_out.numpy().astype(np.float64)
    expected = np.sum((0.1 * x)**2) / np.sum((x - x.mean(axis=0))**2)
    assert found["fvu"] == pytest.approx(expected, rel=1e-5)
    assert (found["l0"], found["frac_alive"]) == (N, 1)


def test_all_peers_learn_and_use_k(rows, raw_file, tmp_path, capfd):
    out = tmp_path / "out.json"
    assert run(*small(raw_file, "--json", out, "--markdown", tmp_path / "out.md")) == 0
    result = json.loads(out.read_text())
    assert (result["train_rows"], result["eval_rows"], result["d_in"]) == (3584, 512, WIDTH)
    assert result["warmup"] == round(60 * 50 / 575)
    assert {r["name"] for r in result["results"]} == set(compare_quality.PEERS)
    for peer in result["results"]:
        assert 0.001 < peer["fvu"] < 0.9, peer
        assert 0 < peer["l0"] <= K
        seconds = [point[0] for point in peer["curve"]]
        assert len(seconds) == 10 and seconds == sorted(seconds) and seconds[-1] == peer["seconds"]
        assert peer["curve"][-1][1] == peer["fvu"] < peer["curve"][0][1]
    best = min(result["results"], key=lambda peer: peer["fvu"])
    assert result["target"] == best["fvu"]
    assert compare_quality.seconds_to(best["fvu"], best) == best["seconds"]
    assert compare_quality.seconds_to(best["fvu"] / 2, best) is None
    table = (tmp_path / "out.md").read_text()
    assert table == capfd.readouterr().out
    assert table.count("\n| ") == 4


def test_own_curve_counts_the_seconds_of_the_rates():
    lines = [{"tokens": 100, "tokens_per_s": 10}, {"tokens": 100, "eval/fvu": 0.5},
             {"tokens": 300, "tokens_per_s": 20}, {"tokens": 300, "eval/fvu": 0.25}]
    assert compare_quality.own_curve(lines) == [(10, 0.5), (20, 0.25)]


def test_sparsify_signum_is_its_trainer(rows):
    """One step at a time against the published update: sign of the gradient, schedule-free."""
    from sparsify import SparseCoder, SparseCoderConfig

    x = torch.from_numpy(rows[:256])
    trainer = peers.PEERS["sparsify_signum"].build(WIDTH, peers.Settings(N, K, seed=5, steps=1))
    trainer.step(x)
    trainer.end()
    torch.manual_seed(5)
    sae = SparseCoder(WIDTH, SparseCoderConfig(num_latents=N, k=K), "cpu", dtype=torch.float32)
    sae.b_dec.data = x.mean(0)
    sae(x).fvu.backward()
    sae.remove_gradient_parallel_to_decoder_directions()
    with torch.no_grad():  # after one step z = x - lr sign(g), and the average is z itself
        for p in sae.parameters():
            p -= 5e-3 / (N / 2**14) ** 0.5 * p.grad.sign()
        torch.testing.assert_close(trainer.reconstruct(x)[0], sae(x).sae_out, rtol=1e-4, atol=1e-4)


def test_shards_and_scale(rows, tmp_path):
    """The same rows as shards: the same batches. FVU does not depend on the scale it is measured
    in."""
    for folder, part in (("data", rows[:-512]), ("data/eval", rows[-512:])):
        (tmp_path / folder).mkdir()
        with h5py.File(tmp_path / folder / "a.h5", "w") as file:
            file["activations"] = part
    rows.tofile(tmp_path / "rows.bin")
    common = ("--n", N, "--k", K, "--batch", 256, "--steps", 5, "--threads", 1, "--peers",
              "sparsify_adam")
    fvu = []
    for i, data in enumerate([("--data", tmp_path / "data"),
                              ("--data", tmp_path / "rows.bin", "--width", WIDTH, "--window", 64,
                               "--eval_windows", 8)]):
        out = tmp_path / f"{i}.json"
        assert run(*data, *common, "--json", out) == 0
        fvu.append(json.loads(out.read_text())["results"][0]["fvu"])
    assert fvu[0] == fvu[1]


def write_run(folder, **changes):
    """The files of a finished run folder that are read."""
    config = {"model.n_latents": N, "model.k": K, "data.batch_size": 256, "optim.lr": 1e-3,
              "data.path": "acts"} | {k: v for k, v in changes.items() if "." in k}
    (folder / "final").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({k: {"value": v} for k, v in config.items()}))
    (folder / "final" / "eval.json").write_text(json.dumps({
        "fvu": 0.05, "l0": 4.0, "frac_alive": 1.0, "rows": changes.get("rows", 512)}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [
        {"step": 1, "tokens": 256, "tokens_per_s": 100.0}, {"step": 60, "tokens": 15360,
                                                            "tokens_per_s": 300.0},
        {"step": 60, "tokens": 15360, "eval/fvu": 0.05}]))
    return folder


def test_ours_stands_in_the_table(raw_file, tmp_path, capfd):
    folder = write_run(tmp_path / "mine")
    assert run(*small(raw_file, "--peers", "--ours", folder)) == 0
    assert "| Megadict (mine) | 0.0500 | 4.0 | 100.0% | 200 |" in capfd.readouterr().out


def test_refusals(raw_file, tmp_path, capfd):
    def refused(code, words, *arguments):
        assert run(*arguments) == code
        error = capfd.readouterr().err
        assert words in error and error.startswith("compare_quality: ") and error.count("\n") == 1

    refused(3, "neither a folder", "--data", tmp_path / "none")
    refused(3, "no whole number", *small(raw_file, "--window", 100))
    refused(2, "--eval_windows 64", *small(raw_file, "--eval_windows", 64))
    refused(2, "cannot be trained", *small(raw_file, "--k", 65))
    refused(3, "no finished run", *small(raw_file, "--ours", tmp_path))
    for i, (change, words) in enumerate([({"model.k": 5}, "model.k = 5"), ({"rows": 7}, "7 rows")]):
        folder = write_run(tmp_path / f"other{i}", **change)
        refused(2, words, *small(raw_file, "--ours", folder))


def test_a_saved_dictionary_of_sparsify_is_the_one_that_was_judged(rows, raw_file, tmp_path):
    from megadict_tools.dictionaries import read_dictionary

    assert run(*small(raw_file, "--peers", "sparsify_adam", "--save", tmp_path / "sae",
                      "--json", tmp_path / "out.json")) == 0
    found = json.loads((tmp_path / "out.json").read_text())["results"][0]
    held_out = torch.from_numpy(rows[-8 * 64:])
    rebuilt, _ = read_dictionary(str(tmp_path / "sae" / "sparsify_adam")).reconstruct(held_out)
    fvu = float((held_out - rebuilt).square().sum() / (held_out - held_out.mean(0)).square().sum())
    assert fvu == pytest.approx(found["fvu"], rel=1e-4)
    assert run(*small(raw_file, "--peers", "dictionary_learning", "--save", tmp_path)) == 2
