"""compare.py: all trainers start alike on the same batches; turns, limits, tables, refusals."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import compare
import peers
from megadict_tools import batch_plan
from megadict_tools.errors import main_guard
from megadict_tools.shards import read_rows
from training import metrics, run as run_command, synth, train_words

WIDTH, N, K, BATCH = 24, 96, 4, 128
PEERS = ["sparsify_adam", "pytorch", "dictionary_learning", "sae_lens"]


@pytest.fixture(scope="module")
def data(megadict_bin, tmp_path_factory):
    return synth(megadict_bin, tmp_path_factory.mktemp("compare") / "acts", rows=9000, d=WIDTH)


def compared(megadict_bin, data, *words):
    common = ["--data", data, "--megadict", megadict_bin, "--n", N, "--k", K, "--batch", BATCH,
              "--threads", 1, "--warmup", 1]
    return main_guard("compare", lambda: compare.main([str(w) for w in [*common, *words]]))


def test_batches_are_those_of_the_binary(megadict_bin, data, tmp_path):
    """Two epochs of several windows with weights that stand still: every step's error is known."""
    steps, window = 2 * (8550 // BATCH), 3000
    words = train_words(data, tmp_path / "run", data__batch_size=BATCH, data__tokens=steps * BATCH,
                        data__shuffle_buffer=window, model__n_latents=N, model__k=K, run__seed=7,
                        optim__lr=compare.STILL, log__every_steps=1, dead__auxk_alpha=0)
    done = run_command(megadict_bin, words)
    assert done.returncode == 0, done.stderr
    logged = [line["losses/mse_loss"] for line in metrics(tmp_path / "run") if "fvu" in line]
    assert len(logged) == steps
    rows = torch.from_numpy(read_rows(data))
    parts = load_file(tmp_path / "run" / "final" / "part_00_of_01.safetensors")
    for found, ids in zip(logged, batch_plan.batches(data, BATCH, steps, 7, window), strict=True):
        x = rows[torch.from_numpy(ids)]
        error = (x - peers.topk_forward(parts, K, x)[0]).pow(2).sum(1).mean()
        assert found == pytest.approx(float(error), rel=1e-4)


def test_all_start_alike(data):
    x = torch.from_numpy(read_rows(data)[:BATCH])
    start = peers.own_start(WIDTH, peers.Settings(N, K, seed=3))
    start["W_enc"] = 0.4 * start["W_enc"]
    start["b_dec"] = x.mean(0)
    expected, codes = peers.topk_forward(start, K, x)
    for name in PEERS:
        trainer = peers.PEERS[name].build(WIDTH, peers.Settings(N, K, batch=BATCH, lr=1e-3,
                                                                auxk=False, start=start))
        xhat, on = trainer.reconstruct(x)
        torch.testing.assert_close(xhat, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(on, codes > 0)
        trainer.step(x)
        assert not torch.equal(trainer.reconstruct(x)[0], xhat), name


def test_turns_and_table(megadict_bin, data, tmp_path, capfd):
    out, table = tmp_path / "out.json", tmp_path / "out.md"
    assert compared(megadict_bin, data, "--rounds", 2, "--steps", 3, "--optim", "adam", "adam_b1_0",
                    "--encode", "fp32", "--lr", 1e-3, "--tokens", 12 * BATCH, "--json", out,
                    "--markdown", table) == 0
    rows = json.loads(out.read_text())["tables"][str(N)]
    assert [r["name"] for r in rows] == ["megadict", "megadict", *PEERS]
    fvu = [r["fvu"] for r in rows]
    assert max(fvu) - min(fvu) < 0.03 * max(fvu)  # equal start, batches, rate, steps
    for r in rows:
        assert [len(part["tokens_per_s"]) for part in r["rounds"]] == [3, 3]
        assert [part["steps_done"] for part in r["rounds"]] == [4, 8]
        assert r["tokens"] == 12 * BATCH and r["timed_steps"] == 6
        assert r["peak_rss_bytes"] > 2e7
        low, high = r["tokens_per_s_quartiles"]
        assert 0 < low <= r["tokens_per_s"] <= high
    assert max(r["to_best_peer"] for r in rows[2:]) == 1
    text = table.read_text()
    assert "torch " in text and "| Megadict fp32, adam_b1_0 |" in text
    assert text.split() == capfd.readouterr().out.split()


def test_ladder(megadict_bin, need_screen, data, tmp_path):
    need_screen("screen_int8")
    out, table = tmp_path / "out.json", tmp_path / "out.md"
    assert compared(megadict_bin, data, "--ladder", "--rounds", 1, "--steps", 2, "--json", out,
                    "--markdown", table) == 0
    rows = json.loads(out.read_text())["tables"][str(N)]
    assert [r["name"] for r in rows] == ["pytorch", "sparsify_adam", *["megadict"] * 4]
    fvu = [r["fvu"] for r in rows]
    assert max(fvu) - min(fvu) < 0.03 * max(fvu)
    rungs = [line.split("|")[1].strip() for line in table.read_text().splitlines()
             if line.count("|") == 5]
    assert rungs == ["rung", "---", *[gained for gained, _ in compare.LADDER]]


def test_a_slow_peer_does_fewer_steps_and_restart_forgets(megadict_bin, data, tmp_path):
    out = tmp_path / "out.json"
    assert compared(megadict_bin, data, "--rounds", 2, "--steps", 3, "--limit_s", 1e-6, "--restart",
                    "--trainers", "megadict", "pytorch", "--encode", "fp32", "--json", out) == 0
    ours, peer = json.loads(out.read_text())["tables"][str(N)]
    assert (ours["timed_steps"], ours["tokens"]) == (6, 4 * BATCH)
    assert (peer["timed_steps"], peer["tokens"]) == (2, 2 * BATCH)


def test_refusals(megadict_bin, data, tmp_path, capfd):
    def refused(code, words, *arguments):
        assert compared(megadict_bin, data, *arguments) == code
        error = capfd.readouterr().err
        assert words in error and error.startswith("compare: ") and error.count("\n") == 1, error

    refused(3, "no shard", "--data", tmp_path)
    refused(3, "no shard", "--eval", tmp_path)
    refused(2, "no program", "--megadict", tmp_path / "none")
    refused(2, "cannot be trained", "--k", N + 1)
    refused(2, "cannot be trained", "--rounds", 0)
    refused(2, "8,550 rows", "--batch", 100000)
    refused(2, "invalid choice", "--trainers", "someone")
    refused(2, "did you mean --rounds", "--round", 3)
    damaged = tmp_path / "damaged"
    shutil.copytree(data, damaged)
    shard = damaged / "shard_000000.h5"
    shard.write_bytes(shard.read_bytes()[:4000])
    refused(3, "no activation shard", "--data", damaged)
