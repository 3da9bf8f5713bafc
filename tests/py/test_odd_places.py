"""Odd places and names: a folder in use or in the way, pipes, texts that are not UTF-8, data that lie
elsewhere. One line and the exit code of its kind."""

import os
import shutil
import subprocess
import time

import h5py
import numpy as np
import pytest
from test_bad_checkpoints import trained, with_run  # noqa: F401
from test_bad_files import done, train
from test_cli_refusals import BAD_DATA, USAGE, acts, call, place, refused  # noqa: F401
from training import start


def test_two_runs_do_not_share_a_folder(megadict_bin, place):
    words = train("acts", "shared", "--run.resume", "auto", "--data.tokens", "20000000")
    process = start(megadict_bin, words, cwd=place)
    try:
        end = time.monotonic() + 60
        while not (place / "shared" / "metrics.jsonl").exists():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)
        second = call(megadict_bin, train("acts", "shared", "--run.resume", "auto"), place)
        assert second.returncode == USAGE
        assert "megadict: another process works in run.dir 'shared'" in second.stderr
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 143


@pytest.mark.parametrize("make, code, text", [
    (lambda run: (run / "latest").unlink() or (run / "latest").mkdir(), USAGE, "latest' is a folder"),
    (lambda run: shutil.rmtree(run / "final") or (run / "final").write_text(""), USAGE,
     "final' is no folder"),
    (lambda run: (run / "metrics.jsonl").open("a").write("garbage\n"), BAD_DATA, "not a JSON object"),
], ids=["latest", "final", "log"])
def test_obstacles_in_a_run_folder_are_met_first(megadict_bin, with_run, make, code, text):
    make(with_run / "run")
    refused(megadict_bin, with_run, train("acts", "run", "--run.resume", "auto"), code, text)


def test_a_stale_folder_under_construction_is_not_taken(megadict_bin, place):
    script = f"mkdir -p new.tmp-$$/eval; cp acts/shard_000000.h5 new.tmp-$$/shard_000009.h5; exec {megadict_bin} \"$@\""
    words = ["data", "synth", "--out", "new", "--n_latents", "16", "--d", "8", "--rows", "500", "--k", "2"]
    out = subprocess.run(["bash", "-c", script, "x", *words], cwd=place, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert not (place / "new" / "shard_000009.h5").exists()
    assert "may be left from a command that was killed" in out.stderr


def test_texts_that_are_not_utf8_pass(megadict_bin, place):
    np.save(place / "rows.npy", np.random.default_rng(0).normal(size=(400, 8)).astype("f4"))
    done(megadict_bin, place, ["data", "import", "--from", "rows.npy", "--out", "odd", "--model", b"\xff\xfe"])
    words = ["train", "--data.path", "odd", "--run.dir", "odd_run", "--model.n_latents", "16",
             "--model.k", "2", "--data.batch_size", "64"]
    done(megadict_bin, place, words)
    assert (place / "odd_run" / "final" / "state.json").exists()


def test_a_pipe_is_not_waited_for(megadict_bin, place):
    os.mkfifo(place / "pipe.h5")
    refused(megadict_bin, place, train("pipe.h5"), BAD_DATA, "not a regular file")


def test_a_message_is_one_line_whatever_the_name(megadict_bin, place):
    refused(megadict_bin, place, ["data", "verify", "a\nb\x1b"], BAD_DATA, "a\\x0ab\\x1b")


def test_data_elsewhere_is_refused(megadict_bin, place):
    with h5py.File(place / "linked.h5", "w") as file:
        file["activations"] = h5py.ExternalLink("acts/shard_000000.h5", "/activations")
    refused(megadict_bin, place, ["data", "import", "--from", "linked.h5", "--out", "copy"], BAD_DATA,
            "lies in another file")


def test_a_variance_that_fp32_loses_is_refused(megadict_bin, place):
    refused(megadict_bin, place, train("acts", "tiny", "--data.scale", "1e-25"), BAD_DATA, "variance")


def test_unusable_data_is_not_described_as_fine(megadict_bin, place):
    (place / "empties").mkdir()
    for i in range(3):
        (place / "empties" / f"s{i}.h5").write_bytes(b"")
    assert call(megadict_bin, ["data", "info", "empties"], place).returncode == BAD_DATA
