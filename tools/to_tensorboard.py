#!/usr/bin/env python3
"""Writes the metrics of runs as TensorBoard's event files.

    tools/to_tensorboard.py runs/a runs/b --out tb
    tensorboard --logdir tb

Called again it appends the lines that have come since; after a resume that went back behind a line
it writes that run anew. The lines carry no time: TensorBoard's axis "step" is the one to look at.
"""

import argparse
import fcntl
import hashlib
import json
import math
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from megadict_tools.errors import BAD_DATA, ERROR, USAGE, OneLineParser, ToolError, add_quiet, main_guard

STATE_FILE = ".to_tensorboard.json"
FLOAT_MAX = 3.4028234663852886e38
NOT_CURVES = ("step", "tokens")


def make_parser() -> OneLineParser:
    parser = OneLineParser(prog="to_tensorboard", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--out", required=True, metavar="DIR", help="each run goes to DIR/NAME")
    add_quiet(parser)
    return parser


def fingerprint(path: Path, length: int) -> str:
    """Of the first bytes of a file, in which a resume may have dropped lines."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while length > 0 and (block := file.read(min(length, 1 << 20))):
            digest.update(block)
            length -= len(block)
    return digest.hexdigest() if length == 0 else ""


def scalars(line: dict) -> dict[str, float]:
    """The numbers of a line; null (not known) is left out."""
    return {name: float(value) for name, value in line.items()
            if name not in NOT_CURVES and isinstance(value, (int, float))
            and not isinstance(value, bool) and math.isfinite(value) and abs(value) <= FLOAT_MAX}


def state_of(folder: Path, metrics: Path) -> dict:
    """How far an earlier call came, {} where there is none or the run has gone back since."""
    try:
        state = json.loads((folder / STATE_FILE).read_text())
        known = (state["prefix"] == fingerprint(metrics, state["offset"])
                 and (folder / state["file"]).stat().st_size >= state["bytes"])
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise ToolError(BAD_DATA, f"'{folder / STATE_FILE}' is damaged", "remove the folder") from error
    return state if known else {}


def start_anew(folder: Path, wall_time: float) -> dict:
    from megadict_tools.event_file import event_file_name, version_event

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    path, head = event_file_name(folder, wall_time), version_event(wall_time)
    path.write_bytes(head)
    return {"file": path.name, "bytes": len(head), "offset": 0, "lines": 0}


def save_state(folder: Path, state: dict):
    partial = folder / (STATE_FILE + ".partial")
    partial.write_text(json.dumps(state) + "\n")
    os.replace(partial, folder / STATE_FILE)


def convert(run: Path, folder: Path, quiet: bool) -> tuple[int, int]:
    """Lines written by this call, and in all. What an interrupted call has written is cut off:
    the state, saved last, says how much of the file counts."""
    from megadict_tools.event_file import scalars_event
    from megadict_tools.progress import Progress
    from megadict_tools.run_folder import lines_with_ends

    metrics = run / "metrics.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    wall_time = metrics.stat().st_mtime
    state = state_of(folder, metrics) or start_anew(folder, wall_time)
    progress = Progress("to_tensorboard", metrics.stat().st_size - state["offset"], "bytes", quiet=quiet)
    before = state["lines"]
    with open(folder / state["file"], "r+b") as out:
        out.truncate(state["bytes"])
        out.seek(state["bytes"])
        for line, end in lines_with_ends(metrics, state["offset"]):
            if found := scalars(line):
                out.write(scalars_event(wall_time, line["step"], found))
            progress.advance(end - state["offset"], run.name)
            state["offset"], state["lines"] = end, state["lines"] + 1
        state["bytes"] = out.tell()
        out.flush()
        os.fsync(out.fileno())
    progress.close()
    state["prefix"] = fingerprint(metrics, state["offset"])
    save_state(folder, state)
    return state["lines"] - before, state["lines"]


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    from megadict_tools.run_folder import short_names

    for run in options.runs:  # before anything is made
        if not (Path(run) / "metrics.jsonl").is_file():
            raise ToolError(BAD_DATA, f"'{run}' has no metrics.jsonl", "a run folder of megadict train")
    out = Path(options.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = open(out / ".to_tensorboard.lock", "w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ToolError(ERROR, f"another to_tensorboard writes to '{out}'") from error
    except (FileExistsError, NotADirectoryError) as error:
        raise ToolError(USAGE, f"cannot write into --out '{out}': a file is in the way") from error
    except OSError as error:
        raise ToolError(ERROR, f"cannot write into --out '{out}': {error.strerror}") from error
    for run, name in zip(options.runs, short_names(options.runs)):
        new, lines = convert(Path(run), out / name, options.quiet)
        print(f"to_tensorboard: '{out / name}': {new:,} new lines, {lines:,} in all", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main_guard("to_tensorboard", main, "the same command goes on where it ended"))
