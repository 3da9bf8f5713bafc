#!/usr/bin/env python3
"""Trains the Python peers on given rows and prints the held-out FVU of each, beside Megadict's own.

    tools/bench/compare_quality.py --data acts --n 4096 --k 32 --batch 2048 --epochs 20 \\
        --ours runs/a --json compare.json --markdown compare.md

Every peer sees the same batches (a new permutation of the training rows each epoch, cut without
regard to where an epoch ends) and its own defaults, except that warm-up, 1000 steps in both, is cut
to the same share of a short run. FVU = sum |x - xhat|^2 / sum |x - mean(x)|^2 over all held-out
rows. It is also taken --points times on the way, off the clock, for the seconds of training that a
trainer needs to reach --target; ours then needs eval.every_steps and log.every_steps, and pays for
its evaluations and its loader.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from megadict_tools.environment import use_environment

use_environment()

import numpy as np
import torch

import peers
from megadict_tools.errors import BAD_DATA, USAGE, OneLineParser, ToolError, main_guard
from megadict_tools.progress import Progress
from megadict_tools.shards import read_rows

FULL_WARMUP, WARMUP_SHARE = 1000, 50 / 575
PEERS = {name: peers.PEERS[name]
         for name in ("sparsify_signum", "sparsify_adam", "dictionary_learning")}


# ---- data ----------------------------------------------------------------------------------------

def load(options) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and held-out rows, float32 [rows, d]."""
    path = Path(options.data)
    if path.is_dir():
        train = read_rows(path)
        held_out = read_rows(options.eval or path / "eval")
    elif path.is_file():
        train, held_out = split_raw(path, options)
    else:
        raise ToolError(BAD_DATA, f"--data '{path}' is neither a folder of shards nor a file")
    if train.shape[1] != held_out.shape[1]:
        raise ToolError(BAD_DATA, f"training rows are {train.shape[1]} wide, held-out rows "
                        f"{held_out.shape[1]}")
    scale = 1.0
    if options.normalize == "unit_rms":
        scale = 1 / np.sqrt(np.mean(np.sum(train.astype(np.float64)**2, axis=1)))
    return torch.from_numpy(train) * scale, torch.from_numpy(held_out) * scale


def split_raw(path: Path, options) -> tuple[np.ndarray, np.ndarray]:
    """A raw float32 file of equal windows; the last --eval_windows of them are held out."""
    data = np.fromfile(path, "<f4")
    if data.size == 0 or data.size % (options.window * options.width):
        raise ToolError(BAD_DATA, f"'{path}' is no whole number of windows of {options.window} "
                        f"rows, {options.width} wide", "--width, --window")
    data = data.reshape(-1, options.width)
    held_out = options.eval_windows * options.window
    if held_out >= len(data):
        raise ToolError(USAGE, f"--eval_windows {options.eval_windows}: the file has "
                        f"{len(data) // options.window} windows")
    return data[:-held_out], data[-held_out:]


def batches(rows: torch.Tensor, size: int, steps: int, seed: int):
    """`steps` batches from an endless row of permutations."""
    generator = torch.Generator().manual_seed(seed)
    waiting = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(len(rows), generator=generator)])
        yield rows[waiting[:size]]
        waiting = waiting[size:]


# ---- running ------------------------------------------------------------------------------------

def run_peer(name: str, train_rows, held_out, steps: int, options) -> dict:
    peer = PEERS[name]
    progress = Progress(peer.label, steps * options.batch, "tokens")
    points = {round(steps * (i + 1) / options.points) for i in range(options.points)} - {steps}
    seconds, curve = 0.0, []
    with contextlib.redirect_stdout(sys.stderr):  # the peers' own remarks
        trainer = peer.build(train_rows.shape[1], peers.Settings(
            options.n, options.k, options.seed, warmup=options.warmup, steps=steps))
        for step, x in enumerate(batches(train_rows, options.batch, steps, options.seed), 1):
            start = time.monotonic()
            trainer.step(x)
            seconds += time.monotonic() - start
            progress.advance(options.batch)
            if step in points:
                trainer.end()
                found = peers.measure(trainer.reconstruct, held_out, options.n)
                curve.append((seconds, found["fvu"]))
                trainer.go_on()
        trainer.end()
    progress.close()
    final = peers.measure(trainer.reconstruct, held_out, options.n)
    if options.save:
        trainer.save(Path(options.save) / name)
    return {"name": name, "label": peer.versioned_label(), "seconds": seconds,
            "tokens_per_s": steps * options.batch / seconds,
            "curve": [*curve, (seconds, final["fvu"])], **final}


def own_curve(lines: list[dict]) -> list[tuple[float, float]]:
    """(seconds, held-out FVU) from metrics.jsonl: a line's rate is that since the line before."""
    seconds, tokens, curve = 0.0, 0, []
    for line in lines:
        if rate := line.get("tokens_per_s"):
            seconds += (line["tokens"] - tokens) / rate
            tokens = line["tokens"]
        if "eval/fvu" in line:
            curve.append((seconds, line["eval/fvu"]))
    return curve


def seconds_to(target: float, result: dict) -> float | None:
    return next((seconds for seconds, fvu in result["curve"] if fvu <= target), None)


def read_ours(folder: str) -> dict:
    """The result of `megadict train`: its run folder."""
    try:
        metrics = json.loads((Path(folder) / "final" / "eval.json").read_text())
        config = json.loads((Path(folder) / "config.json").read_text())
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    except (OSError, ValueError) as error:
        raise ToolError(BAD_DATA, f"--ours '{folder}' is no finished run folder: {error}",
                        "megadict train --run.dir DIR with held-out shards") from error
    lines = [json.loads(line) for line in lines]
    rates = [line.get("tokens_per_s") for line in lines]
    return {"name": "megadict", "label": f"Megadict ({Path(folder).name})",
            "fvu": metrics["fvu"], "l0": metrics["l0"], "frac_alive": metrics["frac_alive"],
            "eval_rows": metrics["rows"], "tokens_per_s": float(np.median([r for r in rates if r])),
            "tokens": max(line["tokens"] for line in lines), "curve": own_curve(lines),
            "settings": {key: config[key]["value"] for key in (
                "model.n_latents", "model.k", "data.batch_size", "optim.lr", "data.path")}}


def check_ours(ours: dict, held_out_rows: int, steps: int, options):
    """A run of another size is not a comparison."""
    wanted = {"model.n_latents": options.n, "model.k": options.k, "data.batch_size": options.batch}
    for key, value in wanted.items():
        if ours["settings"][key] != value:
            raise ToolError(USAGE, f"{ours['label']} has {key} = {ours['settings'][key]}, the "
                            f"peers {value}")
    if ours["eval_rows"] != held_out_rows:
        raise ToolError(USAGE, f"{ours['label']} was judged on {ours['eval_rows']:,} rows, the "
                        f"peers on {held_out_rows:,}")
    if ours["tokens"] > steps * options.batch:
        raise ToolError(USAGE, f"{ours['label']} saw {ours['tokens']:,} tokens, the peers see "
                        f"{steps * options.batch:,}")


def markdown(results: list[dict], facts: dict) -> str:
    lines = [f"Held-out FVU on `{facts['data']}`: n {facts['n']}, k {facts['k']}, batch "
             f"{facts['batch']}, {facts['steps']} steps on {facts['train_rows']:,} training rows, "
             f"{facts['eval_rows']:,} held-out rows, width {facts['d_in']}, warm-up "
             f"{facts['warmup']}, seed {facts['seed']}, {facts['threads']} threads.", "",
             f"| trainer | FVU | L0 | latents that fire | tokens/s | seconds to {facts['target']:.4f} |",
             "|---|---|---|---|---|---|"]
    for r in sorted(results, key=lambda r: r["fvu"]):
        seconds = seconds_to(facts["target"], r)
        lines.append(f"| {r['label']} | {r['fvu']:.4f} | {r['l0']:.1f} | {r['frac_alive']:.1%} | "
                     f"{r['tokens_per_s']:,.0f} | {f'{seconds:.1f}' if seconds else '-'} |")
    return "\n".join(lines) + "\n"


def make_parser() -> OneLineParser:
    parser = OneLineParser(prog="compare_quality", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, metavar="DIR|FILE", help="shards with eval/, or raw float32")
    add("--eval", metavar="DIR", help="held-out shards (default DATA/eval)")
    add("--width", type=int, default=128, help="of a raw file (default 128)")
    add("--window", type=int, default=512, help="rows per window of a raw file (default 512)")
    add("--eval_windows", type=int, default=13, help="held-out windows, the last ones (default 13)")
    add("--normalize", choices=("none", "unit_rms"), default="none",
        help="unit_rms divides all rows by the root of the mean squared norm (default none)")
    add("--n", type=int, default=4096, help="latents (default 4096)")
    add("--k", type=int, default=32, help="active latents per row (default 32)")
    add("--batch", type=int, default=2048, help="rows per step (default 2048)")
    add("--epochs", type=float, default=20, help="passes over the training rows (default 20)")
    add("--steps", type=int, help="instead of --epochs")
    add("--warmup", type=int, help="steps (default: 1000, or 8.7 %% of a short run)")
    add("--peers", nargs="*", default=list(PEERS), choices=list(PEERS), metavar="PEER",
        help=f"{', '.join(PEERS)} (default all; none may be given)")
    add("--points", type=int, default=10, help="FVUs of a peer on its way (default 10)")
    add("--target", type=float, help="FVU to be reached (default: the best peer's at the end)")
    add("--ours", nargs="+", default=[], metavar="RUN_DIR", help="run folders of megadict train")
    add("--save", metavar="DIR", help="sparsify's dictionaries go to DIR/PEER, for loss_recovered.py")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--json", metavar="FILE")
    add("--markdown", metavar="FILE")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    train_rows, held_out = load(options)
    steps = options.steps if options.steps is not None else int(options.epochs * len(train_rows) / options.batch)
    if steps < 2 or min(options.n, options.k, options.batch) < 1 or options.k > options.n:
        raise ToolError(USAGE, f"n {options.n}, k {options.k}, batch {options.batch}, {steps} "
                        "steps cannot be trained")
    if options.points < 1:
        raise ToolError(USAGE, f"--points {options.points}: at least 1")
    if options.save and (bad := [p for p in options.peers if not p.startswith("sparsify")]):
        raise ToolError(USAGE, f"--save: {bad[0]} is not written, sparsify's alone are",
                        "--peers with these")
    if not options.peers and not options.ours:
        raise ToolError(USAGE, "nobody to compare: neither --peers nor --ours")
    if options.warmup is None:
        options.warmup = min(FULL_WARMUP, round(WARMUP_SHARE * steps))
    ours = [read_ours(folder) for folder in options.ours]
    for result in ours:
        check_ours(result, len(held_out), steps, options)
    results = ours + [run_peer(name, train_rows, held_out, steps, options)
                      for name in options.peers]
    final = [r["fvu"] for r in results if r["name"] != "megadict"] or [r["fvu"] for r in results]
    facts = {"target": options.target or min(final), "data": Path(options.data).name, "train_rows": len(train_rows),
             "eval_rows": len(held_out), "d_in": train_rows.shape[1], "n": options.n,
             "k": options.k, "batch": options.batch, "steps": steps, "warmup": options.warmup,
             "normalize": options.normalize, "seed": options.seed, "threads": options.threads}
    table = markdown(results, facts)
    print(table, end="")
    if options.json:
        Path(options.json).write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")
    if options.markdown:
        Path(options.markdown).write_text(table)
    return 0


if __name__ == "__main__":
    sys.exit(main_guard("compare_quality", main))
