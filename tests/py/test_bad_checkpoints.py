"""Damaged and ill-fitting run folders and checkpoints: one line that says what and where, nothing
overwritten; on one rank and on four."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
from test_bad_files import ERROR, MESHES, done, on_meshes, train
from test_cli_refusals import BAD_DATA, USAGE, acts, call, place, refused  # noqa: F401


@pytest.fixture(scope="session")
def trained(megadict_bin, acts, tmp_path_factory):  # noqa: F811
    """A run of ten steps with checkpoints at 8 and 10, and final/; one part each."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "acts").symlink_to(acts)
    done(megadict_bin, folder, train())
    return folder / "run"


@pytest.fixture
def with_run(place, trained):  # noqa: F811
    shutil.copytree(trained, place / "run")
    return place


@pytest.fixture
def interrupted(with_run):
    """The same run, ended after its last checkpoint and before final/."""
    shutil.rmtree(with_run / "run" / "final")
    return with_run


NEWEST = "checkpoints/step_000000010"
PART = "part_00_of_01.safetensors"


def truncate(path):
    os.truncate(path, path.stat().st_size - 100)


def lying_header(path):
    """W_enc is said to have twice its rows."""
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8:8 + length])
    header["W_enc"]["shape"][0] *= 2
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length:])


def endless_header(path):
    whole = path.read_bytes()
    path.write_bytes(struct.pack("<Q", 2**63) + whole[8:])


def half_of_the_latents(path):
    state = json.loads(path.read_text())
    state["parts"][0]["end"] //= 2
    path.write_text(json.dumps(state))


def with_step(step):
    def change(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), "step": step}))
    return change


CHECKPOINTS = [
    ("truncated", PART, truncate, PART),
    ("lies", PART, lying_header, PART),
    ("endless", PART, endless_header, PART),
    ("empty", PART, lambda path: path.write_bytes(b""), PART),
    ("missing", PART, Path.unlink, PART),
    ("missing", "state.json", Path.unlink, "state.json"),
    ("garbage", "state.json", lambda path: path.write_text("not JSON"), "state.json': not JSON"),
    ("empty", "state.json", lambda path: path.write_text("{}"), "state.json"),
    ("list", "state.json", lambda path: path.write_text("[1, 2]"), "state.json"),
    ("short", "state.json", half_of_the_latents, "the parts hold 32 of 64 latents"),
    ("other kind", "state.json", with_step("ten"), "state.json"),
    ("negative", "state.json", with_step(-7), "state.json': step is -7; allowed: an integer, 0 to"),
]


@pytest.mark.parametrize("title, name, harm, part, ranks", on_meshes(CHECKPOINTS, (0, 5, 9)),
                         ids=lambda v: v if isinstance(v, (int, str)) else "")
def test_damaged_checkpoint(megadict_bin, interrupted, title, name, harm, part, ranks):
    harm(interrupted / "run" / NEWEST / name)
    refused(megadict_bin, interrupted, train("acts", "run", "--run.resume", "auto"), BAD_DATA, NEWEST, part,
            "--run.resume FOLDER takes another checkpoint", ranks=ranks)  # fmt: skip
    if ranks == 0:
        for more in (["eval", "--data.path", "acts"], ["export", "--format", "saelens", "--out", "o"]):
            code = USAGE if name == "state.json" and harm is Path.unlink else BAD_DATA
            refused(megadict_bin, interrupted, [*more, "--run.dir", f"run/{NEWEST}"], code)


def test_an_older_checkpoint_can_be_named(megadict_bin, interrupted):
    truncate(interrupted / "run" / NEWEST / PART)
    text = done(megadict_bin, interrupted, train("acts", "run", "--run.resume", "run/checkpoints/step_000000008"))
    assert "resuming 'run/checkpoints/step_000000008' at step 8" in text


@pytest.mark.parametrize("text", ["step_000000099\n", "", "../../etc\n"])
def test_latest_that_points_nowhere_does_no_harm(megadict_bin, interrupted, text):
    (interrupted / "run" / "latest").write_text(text)
    args = train("acts", "run", "--run.resume", "auto", "--data.tokens", "540")
    assert f"resuming 'run/{NEWEST}' at step 10" in done(megadict_bin, interrupted, args)
    assert (interrupted / "run" / "latest").read_text() == "step_000000012\n"


def test_log_with_odd_lines(megadict_bin, with_run):
    log = with_run / "run" / "metrics.jsonl"
    args = train("acts", "run", "--run.resume", "auto", "--data.tokens", "540")
    log.write_text("no JSON\n")
    result = call(megadict_bin, args, with_run)
    assert result.returncode == BAD_DATA
    assert "cannot read 'run/metrics.jsonl': line 1 is not a JSON object" in result.stderr
    log.write_text('{"step": "ten"}\n{"step": 11}\n{"half')
    done(megadict_bin, with_run, args)
    assert log.read_text().startswith('{"step":"ten"}\n{"step":12,')


def test_file_where_a_folder_belongs(megadict_bin, interrupted):
    shutil.rmtree(interrupted / "run" / "checkpoints")
    (interrupted / "run" / "checkpoints").write_text("")
    refused(megadict_bin, interrupted, train("acts", "run", "--run.resume", "auto"), USAGE,
            "'run/checkpoints' is no folder. hint: move it away")


def test_scores_that_cannot_be_written(megadict_bin, with_run):
    args = ["eval", "--run.dir", "run", "--data.path", "acts", "--json"]
    refused(megadict_bin, with_run, [*args, "none/x.json"], USAGE, "there is no folder 'none'")
    refused(megadict_bin, with_run, [*args, "acts"], USAGE, "cannot write 'acts': it is a folder. hint: name a file")
    (with_run / "full").symlink_to("/dev/full")
    result = call(megadict_bin, [*args, "full"], with_run)
    assert result.returncode == ERROR and result.stderr == (
        "megadict: cannot write 'full': No space left on device. hint: free some space or choose another folder\n")
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("ranks", MESHES)
def test_checkpoint_of_another_run(megadict_bin, with_run, ranks):
    args = ["data", "synth", "--rows", "500", "--eval_fraction", "0.1", "--n_latents", "32"]
    done(megadict_bin, with_run, [*args, "--out", "narrow", "--d", "8"])
    done(megadict_bin, with_run, [*args, "--out", "other", "--d", "16", "--seed", "5"])
    resume = ["--run.resume", "auto"]
    refused(megadict_bin, with_run, train("narrow", "run", *resume), USAGE,
            "'run/checkpoints/step_000000010' was trained on rows of width 16, the data have width 8", ranks=ranks)  # fmt: skip
    refused(megadict_bin, with_run, train("other", "run", *resume), USAGE, "was trained on other data",
            ranks=ranks)  # fmt: skip
    refused(megadict_bin, with_run, train("narrow", "new", "--model.init_from", "run"), USAGE,
            "model.init_from 'run/final' has d 16, this run 8", ranks=ranks)  # fmt: skip
    refused(megadict_bin, with_run, ["eval", "--run.dir", "run", "--data.path", "narrow"], BAD_DATA,
            "'run/final' has width 16, the rows of 'narrow/eval' have 8", ranks=ranks)  # fmt: skip


@pytest.mark.parametrize("name, value, before", [("model.k", "4", "3"), ("model.n_latents", "65", "64"),
                                                 ("model.activation", "relu", "topk")])
def test_resume_of_another_model(megadict_bin, with_run, name, value, before):
    words = train("acts", "run", "--run.resume", "auto")
    if f"--{name}" in words:
        words[words.index(f"--{name}") + 1] = value
    else:
        words += [f"--{name}", value]
    for ranks in MESHES:
        refused(megadict_bin, with_run, words, USAGE, f"{name} '{before}' -> '{value}'", ranks=ranks)
