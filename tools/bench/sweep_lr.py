#!/usr/bin/env python3
"""Finds the learning rate with the least held-out FVU for each width, length, batch and k, and fits
a rule to what was found.

    tools/bench/sweep_lr.py --data acts --n 2048 8192 32768 --steps 50 200 800 --out sweep.jsonl
    tools/bench/sweep_lr.py --fit sweep.jsonl

Rates go up and down in factors of 2 until the best has a worse one on either side. Every run is one
line of --out; the same command goes on where it was interrupted, and --fit takes several files.
"""

import argparse
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools")]

from megadict_tools.environment import use_environment

use_environment()

import numpy as np

from megadict_tools.errors import BAD_DATA, ERROR, USAGE, OneLineParser, ToolError, main_guard

CELL = ("data", "optimiser", "n", "k", "batch", "steps", "seed")
INPUTS = ("n", "k", "batch", "steps")  # of the rule
DIVERGED = 4
HIGHEST, LOWEST = 6, -12  # rates as powers of 2 times 1e-3


def rate(power: int) -> float:
    return 1e-3 * 2.0**power


# ---- running ------------------------------------------------------------------------------------

def read_points(path: str) -> list[dict]:
    try:
        text = Path(path).read_text()
        whole = text[:text.rfind("\n") + 1]  # an interrupted write leaves part of a line
        points = [json.loads(line) for line in whole.splitlines()]
    except (OSError, ValueError) as error:
        raise ToolError(BAD_DATA, f"'{path}' is no result of this tool: {error}") from error
    for number, point in enumerate(points, 1):
        if not isinstance(point, dict) or not {*CELL, "power", "fvu"} <= point.keys():
            raise ToolError(BAD_DATA, f"'{path}' is no result of this tool: line {number}")
    return points


def run_point(cell: dict, power: int, options) -> dict:
    folder = tempfile.mkdtemp(prefix="sweep_lr_")
    flags = {"data.path": options.data, "run.dir": f"{folder}/run", "model.n_latents": cell["n"],
             "model.k": cell["k"], "data.batch_size": cell["batch"],
             "data.tokens": cell["batch"] * cell["steps"], "optim.name": cell["optimiser"],
             "optim.lr": rate(power), "run.seed": cell["seed"], "checkpoint.every_minutes": 0,
             "run.threads": options.threads}
    command = [options.megadict, "train", *options.flags]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        if done.returncode == DIVERGED:
            return {**cell, "power": power, "fvu": None}
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ToolError(ERROR, f"megadict train ended with {done.returncode}: {last}")
        result = json.loads(Path(folder, "run", "final", "eval.json").read_text())
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").open()]
        curve = [(line["tokens"], line["fvu"], line["tokens_per_s"])
                 for line in lines if "fvu" in line]
        return {**cell, "power": power, "fvu": result["fvu"], "dead_pct": result["dead_pct"],
                "l0": result["l0"], "curve": curve}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def value(points: dict, power: int) -> float:
    fvu = points[power]["fvu"]
    return math.inf if fvu is None else fvu


def next_power(points: dict, start: int) -> int | None:
    """The rate to try next; None when the best one is bracketed."""
    if not points:
        return start
    best = min(points, key=lambda power: value(points, power))
    return next((p for p in (best + 1, best - 1)
                 if p not in points and LOWEST <= p <= HIGHEST), None)


def search(cell: dict, done: list[dict], start: int, options) -> int:
    """Adds the missing points of a cell to `done` and the file; returns its best power."""
    points = {p["power"]: p for p in done if all(p[key] == cell[key] for key in CELL)}
    while (power := next_power(points, start)) is not None:
        point = run_point(cell, power, options)
        points[power] = point
        done.append(point)
        with open(options.out, "a") as out:
            out.write(json.dumps(point) + "\n")
        shown = "diverged" if point["fvu"] is None else (
            f"fvu {point['fvu']:.4f}, {point['dead_pct']:.1f} % never fire")
        print(" ".join(f"{key} {cell[key]}" for key in CELL[1:]) + f", lr {rate(power):.2e}: "
              + shown, flush=True)
    return min(points, key=lambda p: value(points, p))


def sweep(options):
    done = read_points(options.out) if os.path.exists(options.out) else []
    Path(options.out).write_text("".join(json.dumps(point) + "\n" for point in done))
    start = round(math.log2(options.start_lr / 1e-3))
    for batch, k, n, seed in itertools.product(options.batch, options.k, options.n, options.seed):
        near = start
        for steps in sorted(options.steps):
            cell = {"data": Path(options.data).name, "optimiser": options.optimiser, "n": n,
                    "k": k, "batch": batch, "steps": steps, "seed": seed}
            near = search(cell, done, near, options)


# ---- fitting ------------------------------------------------------------------------------------

def parabola(points: list[dict]) -> tuple[float, float, float] | None:
    """(log2 of the best rate, its log FVU, curvature) through the best point and its neighbours."""
    by_power = {p["power"]: math.log(p["fvu"]) for p in points if p["fvu"] is not None}
    best = min(by_power, key=by_power.get)
    if not {best - 1, best + 1} <= by_power.keys():
        return None
    left, middle, right = (by_power[best + i] for i in (-1, 0, 1))
    curvature = (left + right - 2 * middle) / 2
    shift = (left - right) / (4 * curvature) if curvature > 0 else 0.0
    return best + shift, middle - curvature * shift**2, curvature


def fit(paths: list[str]):
    cells: dict[tuple, list[dict]] = {}
    for path in paths:
        for point in read_points(path):
            cells.setdefault(tuple(point[key] for key in CELL), []).append(point)
    rows = [(dict(zip(CELL, key)), parabola(points)) for key, points in sorted(cells.items())]
    rows = [(cell, top) for cell, top in rows if top]
    if not rows:
        raise ToolError(BAD_DATA, "no cell has a best rate with a worse one on either side")
    varied = [name for name in INPUTS if len({cell[name] for cell, _ in rows}) > 1]
    matrix = np.array([[1.0, *(math.log2(cell[name]) for name in varied)] for cell, _ in rows])
    target = np.array([top[0] for _, top in rows])
    solution = np.linalg.lstsq(matrix, target, rcond=None)[0]
    print("log2(lr / 1e-3) = " + f"{solution[0]:.3f}"
          + "".join(f" {c:+.3f} log2({name})" for name, c in zip(varied, solution[1:])))
    print("| data | optimiser | n | k | batch | steps | best lr | FVU there | rule | FVU lost |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (cell, (power, log_fvu, curvature)), rule in zip(rows, matrix @ solution):
        lost = math.expm1(curvature * (rule - power)**2)
        print(f"| {cell['data']} | {cell['optimiser']} | {cell['n']} | {cell['k']} | "
              f"{cell['batch']} | {cell['steps']} | {rate(power):.2e} | {math.exp(log_fvu):.4f} | "
              f"{rate(rule):.2e} | {lost:.1%} |")


def make_parser() -> OneLineParser:
    parser = OneLineParser(prog="sweep_lr", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--fit", nargs="+", metavar="FILE", help="fit a rule to results instead of running")
    add("--data", metavar="DIR", help="shards with eval/")
    add("--out", metavar="FILE", help="results, one JSON object a line")
    add("--n", type=int, nargs="+", default=[8192], help="latents (default 8192)")
    add("--k", type=int, nargs="+", default=[32], help="active latents per row (default 32)")
    add("--batch", type=int, nargs="+", default=[2048], help="rows per step (default 2048)")
    add("--steps", type=int, nargs="+", default=[200], help="length of a run (default 200)")
    add("--seed", type=int, nargs="+", default=[0])
    add("--optimiser", default="adam", help="optim.name (default adam)")
    add("--start_lr", type=float, default=2e-3, help="where the search starts (default 2e-3)")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--megadict", default=str(ROOT / "build/release/bin/megadict"), metavar="FILE",
        help="the binary (default build/release/bin/megadict)")
    add("--flags", nargs="*", default=[], metavar="NAME=VALUE",
        help="more settings of megadict train, as dead.auxk_alpha=0")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    options.flags = [f"--{flag}" for flag in options.flags]
    if options.fit:
        fit(options.fit)
        return 0
    if not options.data or not options.out:
        raise ToolError(USAGE, "--data and --out are needed, or --fit")
    if not options.start_lr > 0:
        raise ToolError(USAGE, f"--start_lr {options.start_lr} is not positive")
    for name in INPUTS:
        if min(getattr(options, name)) < 1:
            raise ToolError(USAGE, f"--{name} {min(getattr(options, name))} is not positive")
    sweep(options)
    return 0


if __name__ == "__main__":
    sys.exit(main_guard("sweep_lr", main))
