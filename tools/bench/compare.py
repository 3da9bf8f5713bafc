#!/usr/bin/env python3
"""Trains Megadict and its Python peers in turns and prints how fast each of them is.

    tools/bench/compare.py --data acts --n 32768 131072 --k 32 --batch 4096 --json a.json

In each round every trainer makes `--warmup` steps that do not count and `--steps` that do, then
the next one has its turn. All start from the same weights (unit decoder rows, encoder = s times
decoder, as Megadict begins) and see the same batches, with one constant learning rate and AuxK off.
A peer's process holds its trainer alone and has each batch in memory before its clock starts;
Megadict is the binary, resumed in every round (its screen starts cold), and its rate includes
reading the shards. Peers keep what is theirs in a step: sae-lens and dictionary_learning clip the
gradient. The held-out FVU of all is computed here, by one function.

--ladder runs from the dense loop to our fastest, one thing changed from each rung to the next.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from megadict_tools.environment import use_environment

use_environment()

import numpy as np
import torch
from safetensors.torch import save_file

import peers
from megadict_tools import batch_plan
from megadict_tools.errors import USAGE, OneLineParser, ToolError, main_guard
from megadict_tools.progress import Progress, size
from megadict_tools.shards import read_rows
from trainers import OURS, SHUFFLE_BUFFER, Ours, Peer, Trainer, read_weights, run_binary

TRAINERS = (OURS, "sparsify_adam", "pytorch", "dictionary_learning", "sae_lens")
STILL = 1e-30  # a learning rate that changes no weight
# What a rung has over the one before it, and who it is. A gradient that can be clipped is whole
# before any row is updated: a limit that nothing reaches takes the one pass away.
LADDER = (
    ("dense", "pytorch"),
    ("sparse decode and gradient", "sparsify_adam"),
    ("pre-activations stay in cache", ("fp32", "adam", ("optim.clip_norm", 1e30))),
    ("rows updated in one pass", ("fp32", "adam")),
    ("no first moment", ("fp32", "adam_b1_0")),
    ("int8 screen", ("screen_int8", "adam_b1_0")),
)


def compare(n: int, options, shared: dict, folder: Path) -> list[Trainer]:
    job = {**shared, "n": n, "folder": folder, "lr": options.lr or 2e-4 / (n / 2**14) ** 0.5}
    run_binary(job, folder / "start", 1, STILL, "--kernels.encode", "fp32")
    job |= {"start": folder / "start" / "final", "weights": folder / "start.safetensors"}
    save_file(read_weights(job["start"]), job["weights"])
    trainers = make_trainers(options, job)
    progress = Progress(f"n {n}", options.rounds * len(trainers), "turns")
    try:
        for number in range(options.rounds):
            there = number % 2 == 0  # and back: nobody always comes after the same one
            for trainer in trainers if there else reversed(trainers):
                turn(trainer, number, options)
                progress.advance(1, trainer.label)
    finally:
        for trainer in trainers:
            trainer.close()
    progress.close()
    return trainers


def make_trainers(options, job: dict) -> list[Trainer]:
    if options.ladder:
        return [Peer(who, job) if isinstance(who, str) else Ours(*who[:2], job, *who[2:])
                for _, who in LADDER]
    trainers = []
    for name in options.trainers:
        trainers += ([Ours(e, o, job) for e in options.encode for o in options.optim]
                     if name == OURS else [Peer(name, job)])
    return trainers


def turn(trainer: Trainer, number: int, options):
    load = os.getloadavg()[0]
    rates = trainer.train(options.warmup, options.steps, options.limit_s)
    trainer.rounds.append({"tokens_per_s": rates, "steps_done": trainer.done,
                           "load_before": round(load, 2), "peak_rss_bytes": trainer.peak})
    if number == options.rounds - 1:
        if (missing := wanted_steps(options) - trainer.done) > 0 and options.tokens:
            trainer.train(0, missing, options.limit_s)
        trainer.judged = {"tokens": trainer.done * options.batch, **trainer.measure()}
    if options.restart or number == options.rounds - 1:
        trainer.close()


def wanted_steps(options) -> int:
    """How many batches a trainer can come to ask for; the tokens of the FVU are at least these."""
    rounds = 1 if options.restart else options.rounds
    return max(rounds * (options.warmup + options.steps), options.tokens // options.batch)


def summary(trainers: list[Trainer]) -> list[dict]:
    medians = {t.label: float(np.median(t.rates())) for t in trainers}
    of_peers = [medians[t.label] for t in trainers if t.name != OURS]
    out = []
    for t in trainers:
        low, high = np.percentile(t.rates(), [25, 75])
        over = {o.label: medians[o.label] / medians[t.label] for o in trainers if o.name == OURS}
        out.append({
            "name": t.name, "label": t.label, "tokens_per_s": medians[t.label],
            "tokens_per_s_quartiles": [float(low), float(high)], "timed_steps": len(t.rates()),
            "to_best_peer": medians[t.label] / max(of_peers) if of_peers else None,
            "ours_to_this": over, "peak_rss_bytes": t.peak, **t.judged,
            "dead_share": 1 - t.judged["frac_alive"], "rounds": t.rounds})
    return out


def markdown(n: int, rows: list[dict], facts: dict) -> str:
    ours = [r["label"] for r in rows if r["name"] == OURS]
    titles = ["trainer", "tokens/s, median", "quartiles", "timed steps", "to the best peer",
              *[f"{label} to this" for label in ours], "peak memory", "held-out FVU", "dead"]
    lines = [f"n {n:,}, k {facts['k']}, batch {facts['batch']:,}, width {facts['width']}, "
             f"{facts['threads']} threads, {facts['rounds']} rounds, `{facts['data']}`",
             "", "| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    most = max(r["tokens"] for r in rows)
    for r in sorted(rows, key=lambda r: -r["tokens_per_s"]):
        low, high = r["tokens_per_s_quartiles"]
        ratios = [r["to_best_peer"],
                  *[None if r["label"] == o else r["ours_to_this"][o] for o in ours]]
        short = "" if r["tokens"] == most else f" after {r['tokens']:,} tokens"
        cells = [r["label"], f"{r['tokens_per_s']:,.0f}", f"{low:,.0f} to {high:,.0f}",
                 str(r["timed_steps"]), *[f"{x:.2f}" if x else "-" for x in ratios],
                 size(r["peak_rss_bytes"]), f"{r['fvu']:.4f}{short}", f"{r['dead_share']:.1%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines + ["", f"FVU and dead (never fires on the held-out rows) after {most:,} "
                              "tokens. Megadict's rate and memory include its loader."]) + "\n"


def ladder(rows: list[dict]) -> str:
    """Of the summary of its trainers."""
    lines = ["", "| rung | tokens/s | to the one above | to the first |", "|---|---|---|---|"]
    rates = [r["tokens_per_s"] for r in rows]
    for (gained, _), rate, before in zip(LADDER, rates, [rates[0], *rates]):
        lines.append(f"| {gained} | {rate:,.0f} | {rate / before:.2f} | {rate / rates[0]:.2f} |")
    return "\n".join(lines) + "\n"


def machine(options) -> dict:
    """What the numbers depend on."""
    done = subprocess.run([options.megadict, "info"], capture_output=True, text=True)
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    said = dict(words for words in lines if len(words) == 2)
    named = ([who for _, who in LADDER if isinstance(who, str)] if options.ladder
             else [name for name in options.trainers if name != OURS])
    packages = sorted({peers.PEERS[name].package for name in named} | {"torch"})
    return {"processor": said.get("processor", "?"), "cpu_features": said.get("features", "?"),
            "megadict": said.get("megadict", "?"), "LibTorch": said.get("LibTorch", "?"),
            "python": platform.python_version(), "packages": {p: version(p) for p in packages},
            "date": date.today().isoformat()}


def heading(about: dict) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in about["packages"].items())
    return (f"{about['processor']} ({about['cpu_features']}). Megadict {about['megadict']}, "
            f"LibTorch {about['LibTorch']}; Python {about['python']}, {packages}. "
            f"{about['date']}.\n")


def make_parser() -> OneLineParser:
    parser = OneLineParser(prog="compare", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="shards; all rows have to fit in memory")
    add("--eval", metavar="DIR", help="held-out shards (default DATA/eval)")
    add("--n", type=int, nargs="+", default=[32768], help="latents, a table each (default 32768)")
    add("--k", type=int, default=32, help="active latents per row (default 32)")
    add("--batch", type=int, default=4096, help="rows per step (default 4096)")
    add("--rounds", type=int, default=5, help="turns of each trainer (default 5)")
    add("--steps", type=int, default=5, help="timed steps per turn (default 5)")
    add("--warmup", type=int, default=2, help="untimed steps before them (default 2)")
    add("--limit_s", type=float, default=120, metavar="S",
        help="a peer's turn ends with the step that passes this (default 120)")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all")
    add("--trainers", nargs="+", default=list(TRAINERS), choices=(OURS, *peers.PEERS),
        metavar="NAME", help=f"{', '.join((OURS, *peers.PEERS))} (default: without signum)")
    add("--ladder", action="store_true",
        help="these instead: the dense loop, then one thing changed at a time up to our fastest")
    add("--encode", nargs="+", default=["fp32", "screen_int8"], choices=("fp32", "screen_int8", "screen_bf16"),
        metavar="NAME", help="rows of ours: fp32, screen_int8, screen_bf16 (default the first two)")
    add("--optim", nargs="+", default=["adam"], choices=("adam", "adam_b1_0"), metavar="NAME",
        help="rows of ours: adam, adam_b1_0 (default adam)")
    add("--lr", type=float, help="of every trainer (default 2e-4 / sqrt(n / 2^14))")
    add("--tokens", type=int, default=0,
        help="trained on, untimed, before the FVU (default 0: those of the rounds)")
    add("--restart", action="store_true",
        help="every turn begins anew, so that memory holds one trainer at a time")
    add("--seed", type=int, default=0)
    add("--megadict", default="build/release/bin/megadict", metavar="FILE")
    add("--work", metavar="DIR", help="for batches and checkpoints (default: a temporary folder)")
    add("--json", metavar="FILE")
    add("--markdown", metavar="FILE")
    return parser


def prepare(options, folder: Path) -> dict:
    """Writes batches and held-out rows; what every trainer has to know."""
    if not os.access(options.megadict, os.X_OK):
        raise ToolError(USAGE, f"--megadict '{options.megadict}' is no program",
                        "cmake --build --preset release")
    lr = 1 if options.lr is None else options.lr
    least = min(*options.n, options.k, options.batch, options.rounds, options.steps,
                options.threads, options.warmup + 1, options.tokens + 1)
    if least < 1 or options.k > min(options.n) or options.seed < 0 or not lr > 0:
        raise ToolError(USAGE, f"n {options.n}, k {options.k}, batch {options.batch}, rounds "
                        f"{options.rounds}, steps {options.steps}, warmup {options.warmup}, tokens "
                        f"{options.tokens}, threads {options.threads}, lr {options.lr} cannot be trained")
    rows = read_rows(options.data)
    held_out = read_rows(options.eval or Path(options.data) / "eval")
    if rows.shape[1] != held_out.shape[1]:
        raise ToolError(USAGE, f"training rows are {rows.shape[1]} wide, held-out rows "
                        f"{held_out.shape[1]}")
    if options.batch > len(rows):
        raise ToolError(USAGE, f"--batch {options.batch}: the data set has {len(rows):,} rows")
    np.save(folder / "held_out.npy", held_out)
    with open(folder / "batches.f32", "wb") as file:
        for ids in batch_plan.batches(options.data, options.batch, wanted_steps(options),
                                      options.seed, SHUFFLE_BUFFER):
            rows[ids].tofile(file)
    return {"data": options.data, "width": rows.shape[1], "k": options.k, "batch": options.batch,
            "threads": options.threads, "seed": options.seed, "binary": options.megadict,
            "batches": str(folder / "batches.f32"), "held_out": str(folder / "held_out.npy")}


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    torch.set_num_threads(max(1, options.threads))
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of the peers' processes
    if options.work:
        Path(options.work).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="megadict_compare_", dir=options.work) as folder:
        shared = prepare(options, Path(folder))
        facts = {"machine": machine(options), "width": shared["width"], **vars(options),
                 "data": Path(options.data).name}
        text, facts["tables"] = heading(facts["machine"]), {}
        print(text, flush=True)
        for n in options.n:
            with tempfile.TemporaryDirectory(prefix=f"n{n}_", dir=folder) as own:
                rows = summary(compare(n, options, shared, Path(own)))
            table = markdown(n, rows, facts) + (ladder(rows) if options.ladder else "")
            print(table, flush=True)
            text += "\n" + table
            facts["tables"][n] = rows
            if options.json:
                Path(options.json).write_text(json.dumps(facts, indent=1) + "\n")
            if options.markdown:
                Path(options.markdown).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main_guard("compare", main))
