"""`megadict lab` on MNIST: where it is looked for, what is said of absent and damaged files, ranks."""

import gzip
import json
import os
import random
import subprocess

import pytest
from training import MPI_ENV, command

USAGE, BAD_DATA = 2, 3
FILES = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
SMALL = ["--quick", "--seeds", "1", "--samples", "64", "--steps", "3", "--latents", "32"]


def lab(binary, folder, *words, ranks=1, mnist=None):
    env = {name: value for name, value in {**os.environ, **MPI_ENV}.items() if name != "MEGADICT_MNIST"}
    if mnist:
        env["MEGADICT_MNIST"] = str(mnist)
    words = command(binary, ["lab", "run", *words], ranks)
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120, env=env)


@pytest.fixture
def digits(tmp_path):
    """A folder with the four files: 64 images of noise each."""
    folder = tmp_path / "digits"
    folder.mkdir()
    draw = random.Random(1)
    for name in FILES:
        shape = [64, 28, 28] if "images" in name else [64]
        top = 256 if "images" in name else 10
        count = 64 * 784 if "images" in name else 64
        head = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
        (folder / name).write_bytes(gzip.compress(head + bytes(draw.randrange(top) for _ in range(count))))
    return folder


@pytest.mark.parametrize("ranks", [1, 2])
def test_without_mnist_one_line_says_where_it_looked(megadict_bin, tmp_path, ranks):
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    for words, mnist, place in [
        ([], None, "./mnist, ../shared/data/mnist"),
        ([], tmp_path / "env", str(tmp_path / "env")),
        (["--mnist", tmp_path / "flag"], tmp_path / "env", str(tmp_path / "flag")),
    ]:
        done = lab(megadict_bin, here, "connectors", *SMALL, *words, ranks=ranks, mnist=mnist)
        lines = [line for line in done.stderr.splitlines() if line.startswith("megadict:")]
        assert done.returncode == BAD_DATA and len(lines) == 1, done.stderr
        assert f"no MNIST in {place}" in lines[0] and all(name in lines[0] for name in FILES)


def test_it_is_found_in_each_place(megadict_bin, tmp_path, digits):
    run = tmp_path / "x" / "run"
    run.mkdir(parents=True)
    assert lab(megadict_bin, run, "tied", *SMALL, "--out", "by_flag", "--mnist", digits).returncode == 0
    assert lab(megadict_bin, run, "tied", *SMALL, "--out", "by_env", mnist=digits).returncode == 0
    (run / "mnist").symlink_to(digits)
    assert lab(megadict_bin, run, "tied", *SMALL, "--out", "here").returncode == 0
    (run / "mnist").unlink()
    (tmp_path / "x" / "shared" / "data").mkdir(parents=True)
    (tmp_path / "x" / "shared" / "data" / "mnist").symlink_to(digits)
    assert lab(megadict_bin, run, "tied", *SMALL, "--out", "beside").returncode == 0


@pytest.mark.parametrize("how", ["half", "garbage", "empty"])
def test_a_damaged_file_is_named(megadict_bin, tmp_path, digits, how):
    file = digits / "t10k-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    file.write_bytes({"half": whole[: len(whole) // 2], "garbage": b"<html>no</html>", "empty": b""}[how])
    done = lab(megadict_bin, tmp_path, "connectors", *SMALL, "--mnist", digits)
    assert done.returncode == BAD_DATA and len(done.stderr.splitlines()) == 1, done.stderr
    assert str(file) in done.stderr


def test_any_number_of_ranks_gives_the_same(megadict_bin, tmp_path, digits):
    for name in ("connectors", "tied"):
        found = []
        for ranks in (1, 2, 4):
            out = tmp_path / str(ranks)
            done = lab(megadict_bin, tmp_path, name, *SMALL, "--mnist", digits, "--out", out, ranks=ranks)
            assert done.returncode == 0, done.stderr
            result = json.loads((out / f"{name}_quick" / "result.json").read_text())
            cells = [(cell["group"], cell["settings"], cell["numbers"]) for cell in result["cells"]]
            files = {f.relative_to(out): f.read_bytes() for f in sorted(out.glob("*/files/*/*.npy"))}
            found.append((cells, result["table"], files))
        assert found[0] == found[1] == found[2]
    assert (tmp_path / "1" / "connectors_quick" / "files" / "s0.1_w10_random_seed0" / "connector_12.npy").exists()


def test_numbers_of_another_problem_are_refused(megadict_bin, tmp_path, digits):
    done = lab(megadict_bin, tmp_path, "connectors", "--quick", "--zipf", "1", "--mnist", digits)
    assert done.returncode == USAGE and "--samples" in done.stderr
