"""A rank that hangs, or that is stopped, in any collective of a training run ends the whole job: soon,
with exit 5 and one line that names the collective, its axis, the step and the rank.

Which collectives there are is read from the communication.json of three short runs, which together
use every kind on every axis: a mesh of 2 x 2 with AuxK, norm filter, evaluation, checkpoints and
eval.truth; the same run resumed; and a mesh of 1 x 4 whose best latents all lie on one rank, which
makes TopK's repair take place. By default one collective of each axis and kind is tried, hanging and
stopping by turns. With MEGADICT_FULL=1 each one is tried both ways, and a line for each is printed
(pytest -s); about ten minutes on two cores.
"""

import json
import os
import re
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from training import gone, run, start, synth, train_words

FULL = os.environ.get("MEGADICT_FULL") == "1"
WATCHDOG_S = 2
LIMIT_S = 60  # of a whole job, the start of four ranks included
STEPS, HANG_STEP = 8, 5

PARKED = re.compile(r"warning: parked before (\w+) '(.+)' on axis (\w+), (step \d+|set-up)\. "
                    r"hint: gdb -p (\d+),")  # fmt: skip
EXPIRED = re.compile(r"megadict: rank \d+ \(\S+\): (\w+) '(.+?)' on axis (\w+), (step \d+|set-up) "
                     r"lasts longer than 2 s\. behind on this node: (.*)\. hint: ")  # fmt: skip

# Every pair of axis and kind in a run, and whether the rank is stopped there in the short form.
KINDS = [("world", "split"), ("world", "broadcast"), ("world", "barrier"), ("world", "all_gather"),
         ("world", "all_reduce"), ("feature", "all_gather"), ("feature", "all_to_all"),
         ("feature", "all_to_all_v"), ("feature", "reduce_scatter"), ("feature", "all_reduce"),
         ("data", "all_gather"), ("data", "all_to_all"), ("data", "all_to_all_v"), ("data", "broadcast"),
         ("data", "reduce_scatter"), ("data", "all_reduce")]  # fmt: skip
# Watched, but no calls of a communicator: what makes the axes, and the meeting that ends a run.
UNCOUNTED = {"world": {"feature": {"kind": "split", "calls": 1}, "data": {"kind": "split", "calls": 1},
                       "end of program": {"kind": "barrier", "calls": 1}}}  # fmt: skip


@dataclass
class Job:
    """A training run on four ranks that can be started again and again."""

    words: list
    run_dir: Path
    resumed_from: Path | None = None  # a run folder that each start gets a copy of

    def prepare(self):
        shutil.rmtree(self.run_dir, ignore_errors=True)
        if self.resumed_from:
            shutil.copytree(self.resumed_from, self.run_dir)
        return self.words

    def collectives(self):
        axes = json.loads((self.run_dir / "communication.json").read_text())
        return {(axis, name): facts for axis in ("world", "feature", "data")
                for name, facts in {**axes[axis], **UNCOUNTED.get(axis, {})}.items()}  # fmt: skip


def everything(data, out, **more):
    fields = {"model__n_latents": 400, "data__tokens": 101 * STEPS, "dead__window_tokens": 101,
              "data__max_norm_multiple": 10, "eval__every_steps": 3, "eval__truth": data,
              "checkpoint__every_steps": 2, "log__every_steps": 2, "mesh__data": 2}  # fmt: skip
    return train_words(data, out, **{**fields, **more})


def lopsided(binary, data, folder):
    """A dictionary of 160 latents of which the first 40, one rank's of four, are always the largest."""
    from safetensors.numpy import load_file, save_file

    words = train_words(data, folder, model__n_latents=160, model__k=32, data__tokens=101)
    assert run(binary, words).returncode == 0
    part = folder / "final" / "part_00_of_01.safetensors"
    tensors = load_file(part)
    tensors["b_enc"][:40] += 100
    save_file(tensors, part)
    return folder / "final"


@pytest.fixture(scope="module")
def jobs(megadict_bin, tmp_path_factory):
    """Name -> Job; each has run once to its end."""
    place = tmp_path_factory.mktemp("hangs")
    data = synth(megadict_bin, place / "acts", rows=3000)
    uneven = lopsided(megadict_bin, data, place / "lopsided")
    first = run(megadict_bin, everything(data, place / "begun", data__tokens=101 * 2), ranks=4)
    assert first.returncode == 0, first.stderr
    found = {
        "mesh 2x2": Job(everything(data, place / "fresh", optim__name="adam_b1_0"), place / "fresh"),
        "mesh 1x4": Job(everything(data, place / "repair", model__n_latents=160, model__k=32,
                                   mesh__data=1, model__init_from=uneven), place / "repair"),
        "resumed": Job(everything(data, place / "resumed", run__resume="auto",
                                  mesh__exchange="gradients"), place / "resumed", place / "begun"),
    }  # fmt: skip
    for job in found.values():
        done = run(megadict_bin, job.prepare(), ranks=4)
        assert done.returncode == 0, done.stderr
    return found


@pytest.fixture(scope="module")
def places(jobs):
    """(axis, kind) -> [(job, name, calls)]; a name that a job before has too is not tried again."""
    found, seen = {}, set()
    for job in jobs.values():
        for (axis, name), facts in job.collectives().items():
            if (axis, name) not in seen:
                found.setdefault((axis, facts["kind"]), []).append((job, name, facts["calls"]))
            seen.add((axis, name))
    return found


def test_the_runs_have_every_kind(places):
    assert sorted(places) == sorted(KINDS)


# What may follow the sending off of rows within a step.
AFTER_ROWS = ("list sizes", "step sums")


def misbehave(binary, job, hang_at, rank, stop):
    """Starts `job` with a rank that parks at `hang_at`, and is stopped there if `stop`: what it and
    the watchdog said, the exit code, the seconds."""
    words = [*job.prepare(), "--debug.hang_rank", rank, "--debug.hang_at", hang_at,
             "--debug.watchdog_s", WATCHDOG_S]  # fmt: skip
    begin = time.monotonic()
    process = start(binary, words, ranks=4)
    too_long = threading.Timer(LIMIT_S, process.terminate)
    too_long.start()
    drain = threading.Thread(target=process.stdout.read, daemon=True)
    drain.start()
    lines, parked = [], None
    for line in process.stderr:
        lines.append(line)
        if parked is None and (parked := PARKED.search(line)) and stop:
            os.kill(int(parked[5]), signal.SIGSTOP)
    code = process.wait()
    too_long.cancel()
    return parked, lines, code, time.monotonic() - begin


def check(binary, job, name, calls, rank, stop):
    hang_at = f"{name}:{HANG_STEP}" if calls >= STEPS else name
    parked, lines, code, seconds = misbehave(binary, job, hang_at, rank, stop)
    text = "".join(lines)
    assert parked, text
    kind, seen_name, axis, step, pid = parked.groups()
    assert seen_name == name and code == 5 and seconds < LIMIT_S, text
    assert gone(int(pid)), text
    said = [line for line in lines if line.startswith("megadict: ")]
    assert len(said) == 1, text
    expired = EXPIRED.match(said[0])
    assert expired, said[0]
    # Nobody waits at once for a rank that only receives, or for rows that were only sent off: the
    # next collective may be the one that hangs.
    if kind == "broadcast" or name.endswith("to owners"):
        assert expired[3] in (axis, "world") and expired[4] == step, (parked[0], said[0])
        assert kind == "broadcast" or expired[2].endswith("to owners") or expired[2] in AFTER_ROWS
    else:
        assert expired.groups()[:4] == (kind, name, axis, step), (parked[0], said[0])
    behind = f"rank {rank} (pid {pid} is stopped; " if stop else f"rank {rank} (pid {pid} "
    assert behind in expired[5], said[0]
    assert stop or f"{behind}in " not in expired[5], said[0]
    print(f"{'stop' if stop else 'hang'} rank {rank}: {kind} '{name}' on {axis}, {step}: {seconds:.1f} s")


@pytest.mark.parametrize("name, rank, stop", [
    ("rows", 3, False), ("residual gradient to owners", 1, False), ("rows", 2, True),
])  # fmt: skip
def test_ends_the_job_while_exchanges_overlap(megadict_bin, jobs, tmp_path, name, rank, stop):
    """Others wait for that rank's part, or in what comes next: the line says which, and names the rank."""
    words = [*jobs["mesh 2x2"].words, "--mesh.overlap", "true", "--data.micro_batch_size", 17]
    job = Job(words, jobs["mesh 2x2"].run_dir)
    parked, lines, code, seconds = misbehave(megadict_bin, job, f"{name}:{HANG_STEP}", rank, stop)
    text = "".join(lines)
    said = [line for line in lines if line.startswith("megadict: ")]
    assert parked and code == 5 and seconds < LIMIT_S and len(said) == 1, text
    expired = EXPIRED.match(said[0])
    behind = f"rank {rank} (pid {parked[5]} {'is stopped; ' if stop else ''}"
    assert expired and expired[4] == parked[4] and behind in expired[5], text


@pytest.mark.parametrize("axis, kind", KINDS, ids=lambda text: text)
def test_ends_the_job(megadict_bin, places, axis, kind):
    turn = KINDS.index((axis, kind))
    tried = places[axis, kind] if FULL else places[axis, kind][turn % len(places[axis, kind]):][:1]
    for number, (job, name, calls) in enumerate(tried, start=turn):
        for stop in (False, True) if FULL else (turn % 2 == 1,):
            check(megadict_bin, job, name, calls, (number + (2 if stop else 0)) % 4, stop)
