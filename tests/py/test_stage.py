"""data.stage_dir: shards on a disk of the node, whoever reads them."""

import os
import re

import pytest
from training import run, same_bits, synth, train_words

FEW = {"data__tokens": 101 * 20}


@pytest.fixture(scope="module")
def data(megadict_bin, tmp_path_factory):
    return synth(megadict_bin, tmp_path_factory.mktemp("stage") / "acts", rows=3000)


def staged_files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_staged_run_is_the_same_run(megadict_bin, data, tmp_path, ranks):
    plain = run(megadict_bin, train_words(data, tmp_path / "plain", **FEW), ranks)
    words = train_words(data, tmp_path / "staged", data__stage_dir=tmp_path / "disk", **FEW)
    staged = run(megadict_bin, words, ranks)
    assert plain.returncode == staged.returncode == 0, plain.stderr + staged.stderr
    assert len(re.findall(r"^staging 1 of 1 shards in .*: up to", staged.stdout, re.M)) == 2  # held-out ones, too
    assert same_bits(tmp_path / "plain" / "final", tmp_path / "staged" / "final")
    files = staged_files(tmp_path / "disk")
    assert [path.suffix for path in files] == [".h5", ".h5"]
    times = [path.stat().st_mtime_ns for path in files]
    again = run(megadict_bin, [*words, "--run.resume", "auto"], ranks)
    assert again.returncode == 0 and "staging" not in again.stdout, again.stdout + again.stderr
    assert [path.stat().st_mtime_ns for path in staged_files(tmp_path / "disk")] == times


def test_it_is_the_copy_that_is_read(megadict_bin, data, tmp_path):
    words = train_words(data, tmp_path / "run", data__stage_dir=tmp_path / "disk", **FEW)
    assert run(megadict_bin, words).returncode == 0
    copy = max(staged_files(tmp_path / "disk"), key=lambda path: path.stat().st_size)
    with open(copy, "r+b") as file:  # in the middle of its rows
        file.seek(copy.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    words[words.index("--run.dir") + 1] = tmp_path / "again"
    done = run(megadict_bin, words)
    assert done.returncode == 3 and str(copy) in done.stderr, done.stderr


def refused(megadict_bin, words, code, *parts, ranks=1):
    done = run(megadict_bin, words, ranks)
    lines = [line for line in done.stderr.splitlines() if line.startswith("megadict: ")]
    assert (done.returncode, len(lines)) == (code, 1), done.stderr
    assert all(part in lines[0] for part in parts), lines[0]


def test_the_folder_of_the_shards_is_refused(megadict_bin, data, tmp_path):
    words = train_words(data, tmp_path / "run", data__stage_dir=data, **FEW)
    refused(megadict_bin, words, 2, "data.stage_dir", "is the folder of the shards", ranks=2)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_refused(megadict_bin, data, tmp_path):
    (tmp_path / "file").write_text("x")
    words = train_words(data, tmp_path / "run", data__stage_dir=tmp_path / "file" / "disk", **FEW)
    refused(megadict_bin, words, 2, "cannot write", "file' is no folder")
    assert not (tmp_path / "run").exists()


def test_a_disk_that_is_too_small_is_refused(megadict_bin, data, tmp_path):
    large = tmp_path / "acts"
    large.mkdir()
    for shard in data.glob("*.h5"):
        (large / shard.name).write_bytes(shard.read_bytes())
        os.truncate(large / shard.name, 8 << 40)  # a hole: takes no room itself
    words = train_words(large, tmp_path / "run", data__stage_dir=tmp_path / "disk", **FEW)
    refused(megadict_bin, words, 1, "GiB free", "the 1 shards that are not there yet need 8192.00 GiB")
    assert not (tmp_path / "run").exists() and not staged_files(tmp_path / "disk")
