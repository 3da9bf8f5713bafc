"""A harvest stopped at any instant and started again writes what an undisturbed one does."""

import gc
import os
import signal
import subprocess
import sys
import time

import h5py
import pytest

import harvest
from megadict_tools import harvest_plan, shards
from megadict_tools.errors import main_guard
from tiny_models import make_model, stories, write_text


class Killed(BaseException):
    """Stands for kill -9: nothing in the program catches it."""


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    return make_model(folder / "llama", "llama"), write_text(folder / "text.txt", stories(80))


def harvest_arguments(material, out, *more):
    """Two sites, a norm filter, many shards."""
    model, text = material
    return ["--model", str(model), "--text", str(text), "--out", str(out), "--layer", "1", "--site",
            "resid_post", "mlp_out", "--context", "32", "--batch", "4", "--shard_rows", "900",
            "--max_norm_multiple", "1.2", "--eval_fraction", "0.1", "--threads", "1",
            *map(str, more)]


@pytest.fixture
def command(material, tmp_path):
    """command("out", ...) -> the arguments of a harvest into tmp_path/out."""
    return lambda out, *more: harvest_arguments(material, tmp_path / out, *more)


def run(arguments) -> int:
    return main_guard("harvest", lambda: harvest.main(arguments))


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file()}


def release():
    """What the end of a process does: closes its files and gives its locks back."""
    gc.collect()
    for thing in gc.get_objects():
        if type(thing) is h5py.File and thing:
            thing.close()


def crashing(function, countdown):
    """Does the work, then dies, once `countdown` reaches 0."""

    def call(*arguments, **more):
        countdown[0] -= 1
        if countdown[0] == 0:
            raise Killed
        return function(*arguments, **more)

    return call


@pytest.fixture(scope="module")
def undisturbed(material, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run(harvest_arguments(material, folder / "out")) == 0
    return files(folder / "out")


def die_at(command, monkeypatch, count) -> bool:
    """Runs until the count-th step that touches the disk; True if that many there were."""
    with monkeypatch.context() as patch:
        countdown = [count]
        patch.setattr(shards.ShardWriter, "append",
                      crashing(shards.ShardWriter.append, countdown))
        for module in (shards, harvest_plan):
            patch.setattr(module.os, "replace", crashing(os.replace, countdown))
        try:
            assert run(command("out")) == 0
        except Killed:
            return True
        finally:
            release()
    return False


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_dying_again_and_again(count, command, monkeypatch, tmp_path, undisturbed):
    """Dies at the count-th step of every start until nothing can be gained, then runs through."""
    before = None
    while die_at(command, monkeypatch, count):
        names = sorted(p.name for p in (tmp_path / "out").rglob("*.h5"))
        for path in (tmp_path / "out").rglob("*.h5"):  # what has its name is whole
            with h5py.File(path) as file:
                assert file.attrs["rows"] == len(file["activations"]) > 0
        if names == before:
            assert run(command("out")) == 0
            break
        before = names
    assert files(tmp_path / "out") == undisturbed


def test_dying_at_every_step_once(command, monkeypatch, tmp_path, undisturbed):
    """Steps 1, 2, 3, ... of the remaining work: between two renames of a shard, too."""
    count = 1
    while die_at(command, monkeypatch, count):
        count += 1
        assert count < 100
    assert count > 5
    assert files(tmp_path / "out") == undisturbed


def test_kill_9(command, tmp_path, repo_root, undisturbed):
    """A real process, killed while it writes its second shard."""
    tool = [sys.executable, str(repo_root / "tools" / "harvest.py"), *command("out")]
    process = subprocess.Popen(tool, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (list((tmp_path / "out").rglob("*.h5"))) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, process.stderr.read()
    assert files(tmp_path / "out") != undisturbed
    finished = subprocess.run(tool, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert "rows are already there" in finished.stdout
    assert files(tmp_path / "out") == undisturbed


def test_complete_folder_is_left_alone(command, tmp_path, capfd):
    assert run(command("out")) == 0
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.h5")}
    capfd.readouterr()
    assert run(command("out")) == 0
    assert "is complete: nothing to do" in capfd.readouterr().out
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.h5")}


@pytest.mark.parametrize("flag,value,name", [
    ("--context", 16, "context"), ("--layer", 2, "targets"), ("--dtype", "float16", "dtype"),
    ("--seed", 3, "seed"), ("--rows", 500, "rows"), ("--eval_fraction", 0, "eval_fraction"),
    ("--batch", 8, "batch"), ("--max_norm_multiple", 3, "max_norm_multiple")])
def test_other_settings_are_refused(flag, value, name, command, capfd):
    assert run(command("out")) == 0
    capfd.readouterr()
    assert run(command("out", flag, value)) == 2
    error = capfd.readouterr().err
    assert f"was begun with {name} = " in error and error.count("\n") == 1


def test_other_text_is_refused(command, material, tmp_path, capfd):
    assert run(command("out")) == 0
    other = write_text(tmp_path / "text.txt", stories(80, seed=2))
    assert run(command("out", "--text", other)) == 2
    assert "text_fingerprint" in capfd.readouterr().err


def test_foreign_folder_is_refused(command, tmp_path, capfd):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.h5").write_bytes(b"x")
    assert run(command("out")) == 2
    assert "mine.h5" in capfd.readouterr().err


def test_two_at_once_are_refused(command, tmp_path, capfd):
    import fcntl

    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".harvest.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(command("out")) == 1
    assert "another harvest" in capfd.readouterr().err
    assert run(command("out")) == 0
