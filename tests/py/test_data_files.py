"""Shards, safetensors and .npy against the packages everybody else reads and writes them with."""

import subprocess

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture
def megadict(megadict_bin):
    """megadict("data", "info", folder) -> what it printed; another exit code fails the test."""

    def run(*args, expect=0):
        done = subprocess.run([megadict_bin, *map(str, args)], capture_output=True, text=True)
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def rows_of(folder):
    """All rows of a data set as float32, evaluation rows last, read by h5py with its filters on."""
    parts = []
    for path in [*sorted(folder.glob("*.h5")), *sorted((folder / "eval").glob("*.h5"))]:
        with h5py.File(path) as file:
            data = file["activations"]
            assert data.fletcher32 and data.chunks[1] == data.shape[1]
            bits = data[:]
            if data.attrs.get("dtype") == "bfloat16":
                bits = (bits.astype(np.uint32) << 16).view(np.float32)
            parts.append(bits.astype(np.float32))
            assert file.attrs["rows"] == len(bits) and file.attrs["d_in"] == bits.shape[1]
            assert isinstance(file.attrs["model"], str)
            np.testing.assert_allclose(file["norm"][:], np.linalg.norm(parts[-1], axis=1), rtol=1e-6)
    return np.concatenate(parts)


@pytest.fixture
def activations():
    return np.random.default_rng(0).normal(size=(40, 25, 16)).astype(np.float32) + 2


@pytest.mark.parametrize("dtype", ["f4", "f2", "f8"])
def test_npy_is_imported_bit_for_bit(megadict, activations, tmp_path, dtype):
    stored = activations.astype(dtype)
    np.save(tmp_path / "a.npy", stored)
    megadict("data", "import", "--from", tmp_path / "a.npy", "--out", tmp_path / "out")
    assert np.array_equal(rows_of(tmp_path / "out"), stored.reshape(-1, 16).astype(np.float32))


@pytest.mark.parametrize("change, reason", [
    (lambda x: np.asfortranarray(x[0]), "Fortran order"),
    (lambda x: x.astype(">f4"), "big-endian"),
    (lambda x: x.astype("c8"), "unsupported element type"),
    (lambda x: np.zeros(3, dtype=[("a", "f4")]), "records"),
])
def test_npy_that_cannot_be_read_is_refused(megadict, activations, tmp_path, change, reason):
    np.save(tmp_path / "a.npy", change(activations))
    said = megadict("data", "import", "--from", tmp_path / "a.npy", "--out", tmp_path / "out", expect=3)
    assert reason in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_safetensors_are_imported_with_their_tokens(megadict, activations, tmp_path, dtype):
    rows = torch.tensor(activations).to(dtype)
    tokens = torch.arange(1000).reshape(40, 25) + 70000
    save_file({"acts": rows, "tokens": tokens}, tmp_path / "a.safetensors")
    megadict("data", "import", "--from", tmp_path / "a.safetensors", "--out", tmp_path / "out")
    assert np.array_equal(rows_of(tmp_path / "out"), rows.float().numpy().reshape(-1, 16))
    with h5py.File(tmp_path / "out" / "shard_000000.h5") as file:
        assert np.array_equal(file["tokens"][:], np.arange(950) + 70000)


def test_foreign_hdf5_is_split_by_document(megadict, activations, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("layer3/acts", data=activations.astype(">f8"), compression="gzip")
        file.create_dataset("layer3/document", data=np.arange(1000).reshape(40, 25) // 25)
        file.create_dataset("other", data=activations)
        file.create_dataset("names", data=["a", "b"])
    args = ["data", "import", "--from", tmp_path / "a.h5", "--out", tmp_path / "out"]
    assert "--dataset NAME" in megadict(*args, expect=2)
    said = megadict(*args, "--dataset", "layer3/acts", "--eval_fraction", "0.2")
    assert "800 for training, 200 for evaluation (whole documents)" in said
    with h5py.File(tmp_path / "out" / "eval" / "shard_000000.h5") as file:
        held = file["document"][:]
        assert len(set(held)) == 8
        assert np.array_equal(file["activations"][:25], activations[held[0]])


def test_shards_written_by_h5py_are_read(megadict, activations, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("activations", data=activations.reshape(-1, 16).astype(np.float16),
                            chunks=(256, 16), maxshape=(None, 16), fletcher32=True)
        file.attrs.update(model="m", hook="resid", layer=9, d_in=16, dtype="float16", rows=1000)
    assert "rows         1000 in 4 chunks" in megadict("data", "info", tmp_path)
    megadict("data", "verify", tmp_path)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["activations"][700, 3] = np.nan
    assert "chunk 2: row 700 holds a value" in megadict("data", "verify", tmp_path, expect=3)


def test_verify_reads_the_held_out_shards_too(megadict, tmp_path):
    toy = tmp_path / "toy"
    megadict("data", "synth", "--out", toy, "--rows", 500, "--n_latents", 32, "--d", 12, "--k", 4,
             "--eval_fraction", ".2")
    assert "2 shards" in megadict("data", "verify", toy)
    (shard,) = (toy / "eval").glob("*.h5")
    with h5py.File(shard, "r+") as file:
        file["activations"][7, 3] = np.nan
    assert "eval/shard_000000.h5': chunk 0" in megadict("data", "verify", toy, expect=3)


def test_truth_of_synthetic_data_is_plain_safetensors(megadict, tmp_path):
    megadict("data", "synth", "--out", tmp_path / "toy", "--rows", 500, "--n_latents", 32,
             "--d", 12, "--k", 4, "--seed", 7)
    truth = load_file(tmp_path / "toy" / "truth.safetensors")["W_dec"]
    assert truth.shape == (32, 12)
    torch.testing.assert_close(truth.norm(dim=1), torch.ones(32))
    assert rows_of(tmp_path / "toy").shape == (500, 12)
