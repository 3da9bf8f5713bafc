"""import_activations.py: caches as their tools write them, row by row, and what it refuses."""

import datasets
import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import import_activations
from megadict_tools.errors import main_guard

CONTEXTS, CONTEXT, WIDTH = 11, 7, 5


def called(*words):
    return main_guard("import_activations",
                      lambda: import_activations.main([str(word) for word in words]))


@pytest.fixture
def rows():
    return np.random.default_rng(3).normal(size=(CONTEXTS, CONTEXT, WIDTH)).astype(np.float32)


@pytest.fixture
def tokens():
    # Above what 16 bits hold: SAELens itself gives some tools' ids as floats.
    return np.random.default_rng(4).integers(0, 200_000, size=(CONTEXTS, CONTEXT)).astype(np.int32)


def columns(folder):
    """All rows of OUT and OUT/eval, by document and position."""
    parts = {name: [] for name in ("activations", "tokens", "position", "document")}
    for path in sorted(folder.rglob("*.h5")):
        with h5py.File(path) as file:
            for name, found in parts.items():
                if name in file:
                    found.append(file[name][:])
    parts = {name: np.concatenate(found) for name, found in parts.items() if found}
    if "position" in parts:
        order = np.lexsort((parts["position"], parts["document"]))
        parts = {name: found[order] for name, found in parts.items()}
    return parts


def save_arrow(folder, rows, tokens, dtype="float32", shards=2):
    """What SAELens' CacheActivationsRunner leaves behind, in as many files."""
    hook = "blocks.2.hook_resid_post"
    features = datasets.Features({
        hook: datasets.Array2D(shape=(CONTEXT, WIDTH), dtype=dtype),
        "token_ids": datasets.Sequence(datasets.Value("int32"), length=CONTEXT)})
    made = datasets.Dataset.from_dict({hook: list(rows), "token_ids": list(tokens)},
                                      features=features)
    made.save_to_disk(folder, num_shards=shards)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_saelens_cache(megadict_bin, tmp_path, rows, tokens, dtype):
    rows = rows.astype(dtype)
    save_arrow(tmp_path / "cache", rows, tokens, dtype)
    assert called("--from", tmp_path / "cache", "--out", tmp_path / "acts", "--eval_fraction", 0.2,
                  "--megadict", megadict_bin, "--quiet") == 0
    found = columns(tmp_path / "acts")
    assert found["activations"].dtype == dtype
    np.testing.assert_array_equal(found["activations"], rows.reshape(-1, WIDTH))
    np.testing.assert_array_equal(found["tokens"], tokens.reshape(-1))
    np.testing.assert_array_equal(found["position"], np.tile(np.arange(CONTEXT), CONTEXTS))
    np.testing.assert_array_equal(found["document"], np.repeat(np.arange(CONTEXTS), CONTEXT))
    assert list((tmp_path / "acts/eval").glob("*.h5"))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_chunks_come_in_the_order_of_their_numbers_without_masked_rows(megadict_bin, tmp_path, rows,
                                                                      tokens, suffix):
    mask = np.random.default_rng(5).random((CONTEXTS, CONTEXT)) < 0.8
    # As text, shard 10 would come before shard 9.
    for part, name in ((slice(0, 6), "shard-9-chunk-00000000"),
                       (slice(6, CONTEXTS), "shard-10-chunk-00000000")):
        chunk = {"activation": torch.tensor(rows[part]), "tokens": torch.tensor(tokens[part]),
                 "mask": torch.tensor(mask[part])}
        (tmp_path / "cache").mkdir(exist_ok=True)
        path = tmp_path / "cache" / f"{name}.{suffix}"
        save_file(chunk, path) if suffix == "safetensors" else torch.save(chunk, path)
    assert called("--from", tmp_path / "cache", "--out", tmp_path / "acts",
                  "--megadict", megadict_bin, "--quiet") == 0
    found = columns(tmp_path / "acts")
    np.testing.assert_array_equal(found["activations"], rows[mask])
    np.testing.assert_array_equal(found["tokens"], tokens[mask])
    np.testing.assert_array_equal(found["document"],
                                  np.repeat(np.arange(CONTEXTS)[:, None], CONTEXT, 1)[mask])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_alone(megadict_bin, tmp_path, rows, dtype):
    made = torch.tensor(rows).to(dtype).reshape(-1, WIDTH)
    torch.save(made, tmp_path / "x.pt")
    assert called("--from", tmp_path / "x.pt", "--out", tmp_path / "acts", "--eval_fraction", 0,
                  "--megadict", megadict_bin, "--quiet") == 0
    found = columns(tmp_path / "acts")
    want = made.view(torch.uint16).numpy() if dtype == torch.bfloat16 else made.numpy()
    np.testing.assert_array_equal(found["activations"], want)


def test_an_archive_of_arrays(megadict_bin, tmp_path, rows, capsys):
    np.savez(tmp_path / "x.npz", a=rows.reshape(-1, WIDTH), b=rows)
    words = ["--from", tmp_path / "x.npz", "--out", tmp_path / "acts", "--megadict", megadict_bin]
    assert called(*words) == 3
    assert "2 tensors of floats" in capsys.readouterr().err
    assert called(*words, "--tensor", "a") == 0
    assert "rows" in capsys.readouterr().out


class Runs:
    def __reduce__(self):
        return (exec, ("raise SystemExit(7)",))


def hostile(folder, rows):
    folder.mkdir()
    save_arrow(folder / "cut", rows, np.zeros((CONTEXTS, CONTEXT), np.int32), shards=1)
    [arrow] = (folder / "cut").glob("data-*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:300])
    save_arrow(folder / "elsewhere", rows, np.zeros((CONTEXTS, CONTEXT), np.int32), shards=1)
    state = folder / "elsewhere/state.json"
    state.write_text('{"_data_files": [{"filename": "../cut/state.json"}]}')
    torch.save({"activation": Runs()}, folder / "code.pt")
    np.savez(folder / "objects.npz", a=np.array([Runs()], dtype=object))
    torch.save({"activation": torch.zeros(4, 3), "tokens": torch.zeros(5)}, folder / "uneven.pt")
    torch.save(torch.full((4, 3), float("nan")), folder / "nan.pt")
    torch.save(torch.zeros(4, 3, dtype=torch.int32), folder / "whole.pt")
    (folder / "x.csv").write_text("1,2\n")
    (folder / "empty").mkdir()


@pytest.mark.parametrize("name, said", [
    ("cut", "cannot read"), ("elsewhere", "no file of this folder"), ("code.pt", "cannot read"),
    ("objects.npz", "cannot read"), ("uneven.pt", "'tokens' is [5], the activations are [4] rows"),
    ("nan.pt", "finite"), ("whole.pt", "0 tensors of floats"), ("x.csv", "allowed: .pt, .npz"),
    ("empty", "nothing there to import"), ("absent", "is not there")])
def test_bad_caches_leave_nothing_behind(megadict_bin, tmp_path, rows, capsys, name, said):
    hostile(tmp_path / "bad", rows)
    (tmp_path / "out").mkdir()
    capsys.readouterr()  # what the packages said
    assert called("--from", tmp_path / "bad" / name, "--out", tmp_path / "out/acts",
                  "--megadict", megadict_bin) == 3
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("import_activations: ") and said in line
    assert not list((tmp_path / "out").iterdir())


def test_an_existing_folder_is_left_alone(megadict_bin, tmp_path, capsys):
    torch.save(torch.zeros(4, 3), tmp_path / "x.pt")
    (tmp_path / "acts").mkdir()
    (tmp_path / "acts/kept").write_text("x")
    assert called("--from", tmp_path / "x.pt", "--out", tmp_path / "acts") == 2
    assert "exists" in capsys.readouterr().err
    assert [one.name for one in (tmp_path / "acts").iterdir()] == ["kept"]
