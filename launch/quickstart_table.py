#!/usr/bin/env python3
"""The closing table of launch/quickstart.sh: quickstart_table.py OUT PROGRAM CONFIG."""

import json
import sys
from pathlib import Path


def stage_minutes(path: Path) -> dict[str, float]:
    """The longest time of each stage: later calls find most of it done and take seconds."""
    minutes: dict[str, float] = {}
    for line in path.read_text().splitlines():
        name, seconds = line.split("\t")
        minutes[name] = max(minutes.get(name, 0.0), int(seconds) / 60)
    return minutes


def training_speed(metrics: Path) -> float:
    """Median tokens/s over the logged intervals."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    rates = sorted(line["tokens_per_s"] for line in lines if line.get("tokens_per_s"))
    return rates[len(rates) // 2] if rates else float("nan")


def score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main() -> int:
    out, program, config = Path(sys.argv[1]), *sys.argv[2:4]
    quality = json.loads((out / "eval.json").read_text())
    pca = json.loads((out / "pca.json").read_text())
    loss = json.loads((out / "loss_recovered.json").read_text())
    kept = loss["dictionaries"][0]
    dead = round(quality["dead_pct"] / 100 * 9216)
    speed = training_speed(out / "run" / "metrics.jsonl")
    rows = [
        ("FVU, fraction of variance unexplained", f"{quality['fvu']:.4f}"),
        ("explained variance", f"{quality['explained_variance']:.4f}"),
        ("active latents per token (L0)", f"{quality['l0']:.1f}"),
        ("latents that never fire there", f"{dead} of 9216 ({quality['dead_pct']:.1f} %)"),
        ("FVU of a rank-32 PCA, same rows", f"{pca['pca_fvu']['32']:.4f}"),
        ("language model's loss recovered", f"{score(kept['ce_loss_score'])} against zeros, "
         f"{score(kept['ce_loss_score_mean'])} against the mean row"),
        ("training speed", f"{speed:,.0f} tokens/s"),
    ]
    print(f"\nOn {quality['rows']:,} held-out rows:\n")
    for name, value in rows:
        print(f"  {name:<40} {value}")
    print(f"\n  The language model's loss is {loss['ce_clean']:.2f} nats a token, {kept['ce']:.2f} with the "
          f"dictionary in it,\n  {loss['ce_mean']:.2f} with the mean row and {loss['ce_zero']:.2f} with zeros "
          f"({loss['tokens']:,} of the tokens).")
    minutes = stage_minutes(out / "stages.tsv")
    print("\nMinutes: " + ", ".join(f"{name} {value:.1f}" for name, value in minutes.items()))
    print(f"""
In {out}:
  activations/       shards of the language model's activations, held-out ones in eval/
  run/final/         the dictionary; run/metrics.jsonl has every logged step
  saelens/           the same for SAELens: SAE.load_from_disk
  eval.json          all metrics
  report.html        curves, densities, latents in text, metrics: open it in a browser

Next, the same with twice the active latents:
  {program} train --config {config} --data.path {out}/activations \\
    --run.dir {out}/k64 --model.k 64""")
    return 0


if __name__ == "__main__":
    sys.exit(main())
