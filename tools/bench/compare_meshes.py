#!/usr/bin/env python3
"""Trains the same dictionary on several meshes and shows how far the runs lie apart.

    tools/bench/compare_meshes.py --data acts --out meshes --markdown meshes.md

For topk, relu with L1 and a tied decoder, from one common start in which a quarter of the latents
never fires (their encoder rows are shrunk), every mesh trains 50 steps at `--early_lr` and `--epochs`
passes at `--lr`, with a ragged last batch and AuxK over a window of one epoch. The table gives the
largest relative difference from the first mesh of the training FVU over the 50 steps, that of the
held-out FVU at the end, and which share of the latents that were dead after one window fires again
at the end. Exit 1 where a limit (1 %, 0.5 %, 90 %) is not kept.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from megadict_tools.environment import use_environment

use_environment()

import h5py
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from megadict_tools.errors import OneLineParser, ToolError, main_guard
from megadict_tools.progress import Progress
from megadict_tools.shards import find_shards

SETTINGS = {
    "topk": ["--model.activation", "topk"],
    "relu": ["--model.activation", "relu", "--model.l1_coefficient", "0.3",
             "--model.l1_warmup_steps", "100"],
    "tied": ["--model.activation", "topk", "--model.decoder", "tied"],
}
EARLY_STEPS, EARLY_LIMIT, FINAL_LIMIT, REVIVED_LIMIT = 50, 0.01, 0.005, 0.9
SHRUNK_SHARE, SHRINK = 4, 0.05  # every fourth row, to this part of its length


def megadict(options, ranks: int, words: list) -> None:
    launcher = options.mpirun.split() + ["-n", str(ranks)] if ranks > 1 else []
    command = [*launcher, options.binary, *map(str, words)]
    env = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
           "OMPI_MCA_mpi_yield_when_idle": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise ToolError(done.returncode, f"{' '.join(command)}: {done.stderr.strip()[-400:]}")


def train_words(options, setting: str, run: Path, tokens: int, lr: float) -> list:
    return ["train", "--data.path", options.data, "--run.dir", run, "--model.n_latents", options.n,
            "--model.k", options.k, "--data.batch_size", options.batch, "--data.tokens", tokens,
            "--data.last_batch", "keep", "--optim.lr", lr, "--log.every_steps", 1,
            "--run.threads", options.threads, *SETTINGS[setting]]


def common_start(options, setting: str) -> Path:
    """A dictionary as training starts it, but that many of its latents never fire."""
    start = options.out / f"{setting}.start"
    one_step = train_words(options, setting, start, options.batch, lr=1e-12)
    megadict(options, 1, [*one_step, "--eval.tokens", 64])
    part = start / "final" / "part_00_of_01.safetensors"
    tensors = load_file(part)
    with safe_open(part, "numpy") as file:
        metadata = file.metadata()
    tensors["W_enc"] = tensors["W_enc"].copy()
    tensors["W_enc"][::SHRUNK_SHARE] *= SHRINK
    save_file(tensors, part, metadata)
    return start / "final"


def count_rows(folder: str) -> int:
    rows = 0
    for path in find_shards(folder):
        with h5py.File(path) as file:
            rows += len(file["activations"])
    return rows


def curve(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "fvu" in line]


def train(options, setting: str, mesh: str, start: Path, rows: int, tokens: int, lr: float) -> Path:
    run = options.out / f"{setting}.{mesh}.lr{lr:g}"
    shutil.rmtree(run, ignore_errors=True)
    data, feature = map(int, mesh.split("x"))
    megadict(options, data * feature,
             [*train_words(options, setting, run, tokens, lr), "--mesh.data", data,
              "--mesh.feature", feature, "--model.init_from", start, "--dead.window_tokens", rows])
    return run


def measure(options, setting: str, mesh: str, start: Path, rows: int) -> dict:
    early = train(options, setting, mesh, start, rows, EARLY_STEPS * options.batch,
                  options.early_lr)
    run = train(options, setting, mesh, start, rows, int(options.epochs * rows), options.lr)
    lines = curve(run)
    dead = [line["dead_pct"] for line in lines if line["dead_pct"] is not None]
    final = json.loads((run / "final" / "eval.json").read_text())
    return {"setting": setting, "mesh": mesh, "steps": lines[-1]["step"],
            "early": [line["fvu"] for line in curve(early)], "fvu": final["fvu"],
            "dead_after_window_pct": dead[0] if dead else None,
            "dead_at_end_pct": dead[-1] if dead else None}


def judge(result: dict, first: dict) -> dict:
    early = np.array(result["early"]) / np.array(first["early"]) - 1
    out = {**result, "early_difference": float(np.abs(early).max()),
           "final_difference": abs(result["fvu"] / first["fvu"] - 1)}
    if result["dead_after_window_pct"]:
        out["revived"] = 1 - result["dead_at_end_pct"] / result["dead_after_window_pct"]
    return out


def broken_limits(result: dict) -> list[str]:
    where = f"{result['setting']} on {result['mesh']}: "
    out = []
    if result["early_difference"] > EARLY_LIMIT:
        out.append(f"{where}first {EARLY_STEPS} steps {result['early_difference']:.2%} apart")
    if result["final_difference"] > FINAL_LIMIT:
        out.append(f"{where}held-out FVU {result['final_difference']:.2%} apart")
    if result.get("revived", 1) < REVIVED_LIMIT:
        out.append(f"{where}{result['revived']:.1%} of the dead latents revived")
    return out


def markdown(results: list[dict], options) -> str:
    lines = [f"n {options.n}, k {options.k}, batch {options.batch} (ragged last batch), "
             f"{results[0]['steps']} steps, lr {options.lr}, AuxK window one epoch.", "",
             f"| setting | mesh | 50 steps at lr {options.early_lr}, largest difference "
             "| held-out FVU | difference "
             "| dead after a window | dead at the end | revived |", "|---" * 8 + "|"]
    for r in results:
        dead = (f"{r['dead_after_window_pct']:.1f} % | {r['dead_at_end_pct']:.2f} % | "
                f"{r['revived']:.1%}" if "revived" in r else "- | - | -")
        lines.append(f"| {r['setting']} | {r['mesh']} | {r['early_difference']:.3%} | "
                     f"{r['fvu']:.5f} | {r['final_difference']:.3%} | {dead} |")
    return "\n".join(lines) + "\n"


def make_parser() -> OneLineParser:
    parser = OneLineParser(prog="compare_meshes", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="shards, with eval/")
    add("--out", required=True, type=Path, metavar="DIR", help="run folders; replaced")
    add("--binary", default="build/release/bin/megadict", metavar="FILE")
    add("--mpirun", default="mpirun --oversubscribe --bind-to none", metavar="WORDS")
    add("--meshes", nargs="+", default=["1x1", "1x2", "2x1", "2x2", "1x3", "3x2"], metavar="DxF")
    add("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    add("--n", type=int, default=4099, help="latents (default 4099, a prime)")
    add("--k", type=int, default=32)
    add("--batch", type=int, default=2039, help="rows per step (default 2039, a prime)")
    add("--epochs", type=float, default=20)
    add("--early_lr", type=float, default=4e-4)
    add("--lr", type=float, default=4e-3)
    add("--threads", type=int, default=1, help="per rank (default 1)")
    add("--json", metavar="FILE")
    add("--markdown", metavar="FILE")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    rows = count_rows(options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    results, broken = [], []
    progress = Progress("meshes", len(options.settings) * len(options.meshes), "runs")
    for setting in options.settings:
        shutil.rmtree(options.out / f"{setting}.start", ignore_errors=True)
        start = common_start(options, setting)
        first = None
        for mesh in options.meshes:
            result = measure(options, setting, mesh, start, rows)
            first = first or result
            results.append(judge(result, first))
            broken += broken_limits(results[-1])
            progress.advance(1)
    progress.close()
    table = markdown(results, options)
    print(table, end="")
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
    if options.markdown:
        Path(options.markdown).write_text(table)
    for line in broken:
        print(f"limit not kept: {line}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main_guard("compare_meshes", main))
