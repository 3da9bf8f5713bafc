#!/usr/bin/env python3
"""Trains from a start that kills latents, with one remedy after another, and prints how many were
dead on the way and what the dictionary explains in the end.

    tools/bench/dead_latents.py --data acts --n 16384 --steps 200

The start is a decoder bias of zero, no AuxK and, with --shift S, rows moved by one vector S times as
long as their spread. Every remedy is the same run with a few settings more.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools")]

from megadict_tools.environment import use_environment

use_environment()

import h5py
import numpy as np

from megadict_tools.errors import BAD_DATA, ERROR, USAGE, OneLineParser, ToolError, main_guard

SHOWN = 4  # times at which the dead are counted


def remedies(options) -> dict[str, dict]:
    quarters = [max(1, options.steps * i // 4) for i in (1, 2)]
    resampling = {"dead.resample_steps": ",".join(map(str, sorted(set(quarters)))),
                  "dead.resample_rows": options.resample_rows,
                  "dead.resample_scale": options.resample_scale}
    auxk = {"dead.auxk_alpha": 1 / 32}
    every = {
        "none": {},
        "resampling": resampling,
        "auxk": auxk,
        "auxk_stratum": {**auxk, "dead.auxk_stratum": options.stratum},
        "auxk_and_resampling": {**auxk, **resampling},
        "geometric_median": {"model.b_dec_start": "geometric_median"},
        "center": {"data.center": "true"},
    }
    for name in options.remedies:
        if name not in every:
            raise ToolError(USAGE, f"--remedies {name}; allowed: {', '.join(every)}")
    return {name: every[name] for name in options.remedies or every}


def called(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ToolError(ERROR, f"megadict {command[1]} ended with {done.returncode}: {last}")


def shifted(options, folder: str) -> str:
    """A copy of the rows, moved; its share of held-out rows is taken anew."""
    files = sorted(Path(options.data).glob("*.h5"))
    if not files:
        raise ToolError(BAD_DATA, f"'{options.data}' holds no .h5 shards")
    try:
        rows = np.concatenate([h5py.File(path)["activations"][:] for path in files])
    except (OSError, KeyError) as error:
        raise ToolError(BAD_DATA, f"'{options.data}' cannot be read: {error}") from error
    if rows.dtype == np.uint16:
        raise ToolError(BAD_DATA, f"'{options.data}' holds bfloat16; --shift takes float16 or float32")
    rows = rows.astype(np.float32)
    spread = np.sqrt(rows.var(axis=0, dtype=np.float64).sum())
    rows += np.float32(options.shift * spread / np.sqrt(rows.shape[1]))
    np.save(f"{folder}/rows.npy", rows)
    called([options.megadict, "data", "import", "--from", f"{folder}/rows.npy",
            "--out", f"{folder}/rows"])
    return f"{folder}/rows"


def run_one(name: str, more: dict, data: str, options) -> dict:
    tokens = options.steps * options.batch
    with tempfile.TemporaryDirectory(prefix="dead_latents_") as folder:
        flags = {"data.path": data, "run.dir": f"{folder}/run", "model.n_latents": options.n,
                 "model.k": options.k, "data.batch_size": options.batch, "data.tokens": tokens,
                 "run.seed": options.seed, "checkpoint.every_minutes": 0,
                 "run.threads": options.threads, "model.b_dec_start": "zero",
                 "dead.auxk_alpha": 0, "dead.window_tokens": max(1, tokens // 10),
                 "log.every_steps": max(1, options.steps // SHOWN), **more}
        if options.lr:
            flags["optim.lr"] = options.lr
        called([options.megadict, "train", *options.flags,
                *(word for flag, value in flags.items() for word in (f"--{flag}", str(value)))])
        result = json.loads(Path(folder, "run", "final", "eval.json").read_text())
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").open()]
    steps = [line for line in lines if "tokens_per_s" in line]
    return {"remedy": name, "fvu": result["fvu"], "never_fire_pct": result["dead_pct"],
            "dead": [(line["step"], line["dead_pct"]) for line in steps],
            "resampled": [line["resampled"] for line in lines if "resampled" in line],
            "seconds": sum(options.batch * options.steps / len(steps) / line["tokens_per_s"]
                           for line in steps)}


def table(results: list[dict]) -> str:
    shown = [step for step, _ in results[0]["dead"]]
    head = ["remedy", *(f"dead % at step {step}" for step in shown), "held-out: never fire %", "FVU",
            "training s"]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for one in results:
        dead = ["-" if pct is None else f"{pct:.1f}" for _, pct in one["dead"]]
        cells = [one["remedy"], *dead, f"{one['never_fire_pct']:.1f}", f"{one['fvu']:.4f}",
                 f"{one['seconds']:.0f}"]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def make_parser() -> OneLineParser:
    parser = OneLineParser(prog="dead_latents", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="shards with eval/")
    add("--n", type=int, default=16384, help="latents (default 16384)")
    add("--k", type=int, default=32, help="active latents per row (default 32)")
    add("--batch", type=int, default=2048, help="rows per step (default 2048)")
    add("--steps", type=int, default=200, help="length of a run (default 200)")
    add("--lr", type=float, default=0, help="optim.lr; 0 = auto (default 0)")
    add("--shift", type=float, default=0, metavar="S",
        help="rows are moved by a vector of S times their spread (default 0)")
    add("--resample_rows", type=int, default=32768, help="dead.resample_rows (default 32768)")
    add("--resample_scale", type=float, default=0.2, help="dead.resample_scale (default 0.2)")
    add("--stratum", type=int, default=1024, help="dead.auxk_stratum (default 1024)")
    add("--remedies", nargs="+", default=[], metavar="NAME", help="only these (default all)")
    add("--seed", type=int, default=0)
    add("--out", metavar="FILE", help="also writes one JSON object a run")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--megadict", default=str(ROOT / "build/release/bin/megadict"), metavar="FILE",
        help="the binary (default build/release/bin/megadict)")
    add("--flags", nargs="*", default=[], metavar="NAME=VALUE",
        help="more settings of megadict train, as optim.name=sign_sgd")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    options.flags = [f"--{flag}" for flag in options.flags]
    for name in ("n", "k", "batch", "steps"):
        if getattr(options, name) < 1:
            raise ToolError(USAGE, f"--{name} {getattr(options, name)} is not positive")
    results = []
    with tempfile.TemporaryDirectory(prefix="dead_latents_rows_") as folder:
        chosen = remedies(options)
        data = shifted(options, folder) if options.shift else options.data
        for name, more in chosen.items():
            results.append(run_one(name, more, data, options))
            print(f"{name}: fvu {results[-1]['fvu']:.4f}", file=sys.stderr, flush=True)
            if options.out:
                with open(options.out, "a") as out:
                    out.write(json.dumps(results[-1]) + "\n")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main_guard("dead_latents", main))
