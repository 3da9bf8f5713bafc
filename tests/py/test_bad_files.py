"""Damaged and ill-fitting files: data sets, run folders, foreign arrays, full disks. One line
that says what and where, the exit code of its kind, nothing overwritten; on one rank and on four."""

import os
import resource
import shutil
import struct
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_cli_refusals import BAD_DATA, USAGE, acts, call, place, refused  # noqa: F401
from training import ranks_of, same_bits, start, train_words
from training import run as launched

ERROR = 1
TRAIN = ["--data.batch_size", "45", "--model.n_latents", "64", "--model.k", "3", "--optim.lr", "1e-3",
         "--checkpoint.every_steps", "4"]  # fmt: skip
MESHES = [0, 4]  # ranks; 0 = without a launcher
FULL = os.environ.get("MEGADICT_FULL") == "1"  # every row on four ranks too


def train(data="acts", out="run", *more):
    return ["train", "--data.path", data, "--run.dir", out, *TRAIN, *more]


def done(binary, folder, args, ranks=0):
    result = call(binary, args, folder, ranks)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# --- data sets

def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.h5"))[0]


def set_value(file, row, value):
    """Changes a row so that every checksum fits again."""
    rows = file["activations"][:]
    rows[row, 3] = value
    del file["activations"]
    file.create_dataset("activations", data=rows, chunks=(50, rows.shape[1]), fletcher32=True)
    if "chunk_checksum" in file:
        del file["chunk_checksum"]


def flip_byte(folder):
    shard = first_shard(folder)
    with h5py.File(shard) as file:
        chunk = file["activations"].id.get_chunk_info(0)
    with shard.open("r+b") as file:
        file.seek(chunk.byte_offset + 100)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x10]))


def nan_row(folder):
    with h5py.File(first_shard(folder), "r+") as file:
        set_value(file, 77, np.nan)


def no_rows(folder):
    with h5py.File(first_shard(folder), "w") as file:
        file.create_dataset("activations", (0, 16), "f4", chunks=(8, 16), maxshape=(None, 16), fletcher32=True)


def other_width(folder):
    with h5py.File(folder / "zz.h5", "w") as file:
        file.create_dataset("activations", data=np.ones((8, 12), "f4"), chunks=(8, 12), fletcher32=True)


def short_of_rows(folder):
    with h5py.File(first_shard(folder), "r+") as file:
        file.attrs["rows"] = 451


def torn(folder):
    shard = first_shard(folder)
    os.truncate(shard, shard.stat().st_size // 2)


def emptied(folder):
    os.truncate(first_shard(folder), 0)


def folder_for_a_shard(folder):
    (folder / "zz.h5").mkdir()


def doubles(folder):
    with h5py.File(first_shard(folder), "w") as file:
        file.create_dataset("activations", data=np.ones((50, 16)), chunks=(50, 16), fletcher32=True)


def held_out_text(folder):
    (folder / "eval" / "zz.h5").write_text("no shard")


DATA = [
    (flip_byte, "chunk 0 (rows 0 to", "does not match its checksum"),
    (nan_row, "row 77", "not finite"),
    (no_rows, "'activations' is [0,16]: no rows"),
    (other_width, "zz.h5' do not belong together: rows 16 wide against 12", "megadict data info bad"),
    (short_of_rows, "its attribute rows says 451"),
    (torn, "shard_000000.h5"),
    (emptied, "shard_000000.h5"),
    (folder_for_a_shard, "zz.h5"),
    (doubles, "'activations' is float64"),
    (held_out_text, "eval/zz.h5"),
]


def on_meshes(rows, of_four):
    """(row, 0) for each row, (row, 4) for those numbered in `of_four`."""
    return [(*row, ranks) for ranks in MESHES for i, row in enumerate(rows)
            if ranks == 0 or FULL or i in of_four]  # fmt: skip


@pytest.mark.parametrize("harm, parts, ranks", on_meshes([(row[0], row[1:]) for row in DATA], (0, 1, 3, 5)),
                         ids=lambda v: getattr(v, "__name__", v if isinstance(v, int) else ""))
def test_data_that_cannot_be_used(megadict_bin, place, harm, parts, ranks):
    shutil.copytree(place / "acts", place / "bad")
    harm(place / "bad")
    refused(megadict_bin, place, train("bad"), BAD_DATA, *parts, ranks=ranks)


def test_missing_data(megadict_bin, place):
    for path in ("none", "acts/none.h5", "acts/*.hdf5", "/proc/nothing"):
        refused(megadict_bin, place, train(path), BAD_DATA, f"'{path}'")
    refused(megadict_bin, place, train("acts", "run", "--data.eval_path", "none"), BAD_DATA, "'none'")
    refused(megadict_bin, place, train("none"), BAD_DATA, "'none'", ranks=4)


# --- run folders

@pytest.mark.parametrize("ranks", MESHES)
def test_run_folder_that_cannot_be_made(megadict_bin, place, ranks):
    (place / "file").write_text("in the way")
    (place / "lost").symlink_to("nowhere")
    for folder, code, why in (("file/run", USAGE, "'file' is no folder"), ("file", USAGE, "'file' is no folder"),
                              ("lost", USAGE, "'lost' is no folder"), ("r" * 300, USAGE, "File name too long"),
                              ("/proc/run", ERROR, "No such file"), ("/sys/run", ERROR, "")):  # fmt: skip
        refused(megadict_bin, place, train("acts", folder), code, f"cannot write '{folder}'", why,
                ranks=ranks)  # fmt: skip


def test_run_folder_among_the_shards(megadict_bin, place):
    for folder in ("acts", "./acts/", str(place / "acts")):
        refused(megadict_bin, place, train("acts", folder), USAGE, "is the folder of the shards")


@pytest.mark.parametrize(
    "args, ranks, part",
    [
        (["--mesh.data", "2", "--mesh.feature", "3"], 4, "mesh.feature 3 does not divide 4 ranks"),
        (["--mesh.data", "2", "--mesh.feature", "1"], 4, "2 x mesh.feature 1 = 2 does not make 4 ranks"),
        (["--model.n_latents", "3", "--mesh.feature", "4"], 4, "mesh.feature = 4 is more than model.n_latents = 3"),
        (["--model.k", "65"], 4, "model.k = 65 is more than model.n_latents = 64"),
        (["--model.k", "0"], 4, "model.k = '0'"),
        (["--data.max_norm_multiple", "0.5"], 4, "data.max_norm_multiple = 0.5"),
        (["--debug.hang_rank", "4"], 4, "debug.hang_rank 4: there are ranks 0 to 3"),
        (["--model.colour", "red"], 4, "unknown flag '--model.colour'"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)  # fmt: skip
def test_meshes_and_sizes(megadict_bin, place, args, ranks, part):
    words = train()
    for name in set(args[::2]).intersection(words):
        at = words.index(name)
        del words[at:at + 2]
    refused(megadict_bin, place, [*words, *args], USAGE, part, ranks=ranks)


# --- foreign arrays

def npy(path, array):
    np.save(path, array)


FOREIGN = [
    ("a.npy", lambda p: npy(p, np.asfortranarray(np.ones((8, 4), "f4"))), "Fortran order"),
    ("a.npy", lambda p: npy(p, np.ones((8, 4), "i8")), "int64, not floats"),
    ("a.npy", lambda p: npy(p, np.ones((8, 4), ">f4")), "big-endian"),
    ("a.npy", lambda p: npy(p, np.array([[{}]], dtype=object)), "Python objects"),
    ("a.npy", lambda p: npy(p, np.ones(8, "f4")), "expected [rows, d]"),
    ("a.npy", lambda p: npy(p, np.ones((0, 4), "f4")), "no rows"),
    ("a.npy", lambda p: npy(p, np.ones((8, 4), "c8")), "unsupported element type"),
    ("a.npy", lambda p: npy(p, np.full((8, 4), np.inf, "f4")), "row 0, column 0 is not finite"),
    ("a.npy", lambda p: p.write_bytes(b""), "only 0 bytes"),
    ("a.npy", Path.mkdir, "a.npy"),
    ("a.safetensors", lambda p: p.write_bytes(struct.pack("<Q", 2**62)), "a header of"),
    ("a.safetensors", lambda p: p.write_bytes(struct.pack("<Q", 2) + b"{}"), "no tensor of floats"),
    ("a.h5", lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64)), "a.h5"),
]  # fmt: skip


@pytest.mark.parametrize("name, make, part", FOREIGN, ids=[row[2] for row in FOREIGN])
def test_import_of_a_bad_array(megadict_bin, tmp_path, name, make, part):
    make(tmp_path / name)
    refused(megadict_bin, tmp_path, ["data", "import", "--from", name, "--out", "o"], BAD_DATA, part)


# --- output that goes nowhere

@pytest.mark.parametrize("args", [["plan", "--d", "16"], ["--help"], ["--version"], ["info"],
                                  ["train", "--help"], ["data", "info", "acts"]], ids=" ".join)
def test_lost_output_is_an_error(megadict_bin, place, args):
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run([megadict_bin, *args], cwd=place, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == ERROR
    assert ended.stderr == "megadict: cannot write to standard output: No space left on device\n"


def limit_file_size(pids, size):
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("shape", [(1, 1), (2, 2)])
def test_checkpoint_that_cannot_be_written(megadict_bin, place, shape):
    """Halfway through a run no file may become larger than 4 kB: as good as a full disk."""
    ranks, more = shape[0] * shape[1], {"mesh__data": shape[0], "mesh__feature": shape[1]}
    fields = {"data__tokens": 101 * 300, "checkpoint__every_steps": 20, "run__resume": "auto",
              "log__every_steps": 1000, **more}  # fmt: skip
    out = place / "limited"
    words = train_words(place / "acts", out, **fields)
    process = start(megadict_bin, words, ranks=ranks)
    while not list(out.glob("checkpoints/step_*/state.json")):
        assert process.poll() is None, process.communicate()
    limit_file_size(ranks_of(out), 4096)
    _, err = process.communicate(timeout=60)
    said = [line for line in err.splitlines() if line.startswith("megadict: ")]
    assert process.returncode == ERROR and len(said) == 1, err
    assert "cannot write '" in said[0] and "File too large" in said[0]
    kept = [p for p in (out / "checkpoints").glob("step_*/state.json") if ".tmp" not in str(p)]
    assert kept
    again = launched(megadict_bin, words, ranks=ranks)
    assert again.returncode == 0, again.stderr
    assert f"resuming '{max(kept).parent}'" in again.stdout
    assert not list(out.rglob("*.tmp*"))
    whole = place / "whole"
    ended = launched(megadict_bin, train_words(place / "acts", whole, **fields), ranks=ranks)
    assert ended.returncode == 0 and same_bits(whole / "final", out / "final")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"no file system may be mounted here: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("ranks", [1, 2])
def test_full_disk_keeps_the_old_checkpoint(megadict_bin, place, small_disk, ranks):
    out = small_disk / "run"  # a checkpoint takes 0.75 MB: the third does not fit beside two
    words = train_words(place / "acts", out, model__n_latents=1850, checkpoint__every_steps=10,
                        checkpoint__keep=2, run__resume="auto")  # fmt: skip
    ended = launched(megadict_bin, words, ranks=ranks)
    assert ended.returncode == ERROR, ended.stdout + ended.stderr
    said = [line for line in ended.stderr.splitlines() if line.startswith("megadict: ")]
    assert len(said) == 1 and "No space left on device. hint: free some space" in said[0], ended.stderr
    kept = sorted(p.parent.name for p in out.glob("checkpoints/step_*/state.json") if ".tmp" not in str(p))
    assert kept == ["step_000000010", "step_000000020"]
    words[words.index("--checkpoint.keep") + 1] = "1"
    shutil.rmtree(out / "checkpoints" / kept[0])  # the user frees some space
    ended = launched(megadict_bin, words, ranks=ranks)
    assert ended.returncode == 0, ended.stderr
    assert f"resuming '{out}/checkpoints/{kept[1]}' at step 20" in ended.stdout
