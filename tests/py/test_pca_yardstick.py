"""pca_yardstick.py against numpy's SVD of all rows at once."""

import json

import h5py
import numpy as np
import pytest

import pca_yardstick
from megadict_tools.errors import main_guard

WIDTH = 24


def write_shards(folder, rows, count=3, name="activations"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(np.array_split(rows, count)):
        with h5py.File(folder / f"shard_{i}.h5", "w") as file:
            file[name] = part


@pytest.fixture
def rows():
    """Correlated rows with a mean a thousand times their spread."""
    random = np.random.default_rng(0)
    mix = random.normal(size=(WIDTH, WIDTH)) * np.geomspace(1, 0.01, WIDTH)[:, None]
    make = lambda n, mean: (random.normal(size=(n, WIDTH)) @ mix + mean).astype(np.float32)
    return make(20_000, 1000), make(3000, 1000.5)


def run(*arguments) -> int:
    return main_guard("pca_yardstick", lambda: pca_yardstick.main([str(a) for a in arguments]))


def svd_fvu(train, held_out, k):
    train, held_out = train.astype(np.float64), held_out.astype(np.float64)
    _, _, right = np.linalg.svd(train - train.mean(axis=0), full_matrices=False)
    centred = held_out - train.mean(axis=0)
    left = centred - centred @ right[:k].T @ right[:k]
    return np.sum(left**2) / np.sum((held_out - held_out.mean(axis=0))**2)


def test_equals_svd(rows, tmp_path, capfd):
    train, held_out = rows
    write_shards(tmp_path / "data", train)
    write_shards(tmp_path / "data" / "eval", held_out, 1)
    ks = [0, 1, 5, WIDTH - 1, WIDTH]
    assert run("--data", tmp_path / "data", "--k", *ks, "--json", tmp_path / "out.json") == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["train_rows"], result["eval_rows"], result["d_in"]) == (20_000, 3000, WIDTH)
    for k in ks:
        assert result["pca_fvu"][str(k)] == pytest.approx(svd_fvu(train, held_out, k), rel=1e-6,
                                                          abs=1e-9)
    assert "PCA rank 5: FVU 0." in capfd.readouterr().out


def test_reads_bfloat16(tmp_path, rows):
    import torch

    for folder, part in zip(("data", "data/eval"), rows):
        (tmp_path / folder).mkdir()
        bits = torch.from_numpy(part).to(torch.bfloat16).view(torch.uint16).numpy()
        with h5py.File(tmp_path / folder / "a.h5", "w") as file:
            file["activations"] = bits
            file["activations"].attrs["dtype"] = "bfloat16"
    assert run("--data", tmp_path / "data", "--k", 4, "--json", tmp_path / "out.json") == 0
    found = json.loads((tmp_path / "out.json").read_text())["pca_fvu"]["4"]
    rounded = [torch.from_numpy(p).to(torch.bfloat16).float().numpy() for p in rows]
    assert found == pytest.approx(svd_fvu(*rounded, 4), rel=1e-6)


def test_refusals(rows, tmp_path, capfd):
    def refused(code, words, *arguments):
        assert run(*arguments) == code
        error = capfd.readouterr().err
        assert words in error and error.startswith("pca_yardstick: ") and error.count("\n") == 1

    train, held_out = rows
    write_shards(tmp_path / "data", train)
    refused(3, "no shard", "--data", tmp_path / "data")
    write_shards(tmp_path / "data" / "eval", held_out[:, :5])
    refused(3, "5 wide", "--data", tmp_path / "data")
    write_shards(tmp_path / "data" / "eval", held_out)
    refused(2, "not in 0 to 24", "--data", tmp_path / "data", "--k", 25)
    write_shards(tmp_path / "broken", np.full((4, 3), np.nan, np.float32), 1)
    refused(3, "row 0 is not finite", "--data", tmp_path / "broken")
    write_shards(tmp_path / "other", train, 1, name="rows")
    refused(3, "no activation shard", "--data", tmp_path / "other")
    corrupt = tmp_path / "corrupt" / "a.h5"
    corrupt.parent.mkdir()
    with h5py.File(corrupt, "w") as file:
        file.create_dataset("activations", data=train, chunks=(1000, WIDTH), fletcher32=True)
        chunk = file["activations"].id.get_chunk_info(3)
    with open(corrupt, "r+b") as file:
        file.seek(chunk.byte_offset + 40)
        file.write(b"\xff\x00\xff")
    refused(3, "cannot read", "--data", tmp_path / "corrupt")
