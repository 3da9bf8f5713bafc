#!/usr/bin/env python3
"""The FVU of plain PCA: what k directions that are the same for every row explain.

    tools/pca_yardstick.py --data acts --k 32 64

Fits mean and principal components on the shards of DATA and measures
FVU = sum |x - xhat|^2 / sum |x - mean(x)|^2 on DATA/eval, the mean being that of the held-out rows.
A dictionary with k active latents per row that does not beat PCA of rank k has learned nothing.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from megadict_tools.environment import use_environment

use_environment()

import numpy as np

from megadict_tools.errors import (BAD_DATA, USAGE, OneLineParser, ToolError, add_quiet, main_guard,
                                   refuse_output_file)
from megadict_tools.progress import Progress
from megadict_tools.shards import count_rows, read_blocks


class Moments:
    """Count, mean and scatter matrix about the mean, in fp64, merged block by block.

    Merging (Chan, Golub, LeVeque 1979) never subtracts large near-equal sums, so that data with a
    large mean loses no digits.
    """

    def __init__(self):
        self.rows, self.mean, self.scatter = 0, 0.0, 0.0

    def add(self, block: np.ndarray):
        block = block.astype(np.float64)
        mean = block.mean(axis=0)
        centred = block - mean
        shift, total = mean - self.mean, self.rows + len(block)
        self.scatter = (self.scatter + centred.T @ centred
                        + np.outer(shift, shift) * (self.rows * len(block) / total))
        self.mean = self.mean + shift * (len(block) / total)
        self.rows = total


def moments_of(folder: Path, quiet: bool) -> Moments:
    moments, progress = Moments(), Progress("pca_yardstick", count_rows(folder), quiet=quiet)
    for block in read_blocks(folder):
        moments.add(block)
        progress.advance(len(block))
    progress.close()
    return moments


def pca_fvu(train: Moments, held_out: Moments, ks: list[int]) -> dict[int, float]:
    """FVU by rank. What is left of the held-out rows is a trace: with P the projection on the
    dropped directions and m the fitted mean, sum |P(x - m)|^2 = tr P (scatter about m)."""
    _, directions = np.linalg.eigh(train.scatter)  # ascending
    shift = held_out.mean - train.mean
    about_fit = held_out.scatter + held_out.rows * np.outer(shift, shift)
    by_direction = np.einsum("di,de,ei->i", directions, about_fit, directions, optimize=True)
    variance = np.trace(held_out.scatter)
    width = len(by_direction)
    return {k: float(by_direction[:width - k].sum() / variance) for k in ks}


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineParser(prog="pca_yardstick", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of shards, with eval/")
    parser.add_argument("--eval", metavar="DIR", help="held-out shards (default DATA/eval)")
    parser.add_argument("--k", type=int, nargs="+", default=[32], help="ranks (default 32)")
    parser.add_argument("--json", metavar="FILE", help="write the result here too")
    add_quiet(parser)
    options = parser.parse_args(arguments)
    if options.json:
        refuse_output_file(Path(options.json))

    data = Path(options.data)
    train = moments_of(data, options.quiet)
    held_out = moments_of(Path(options.eval or data / "eval"), options.quiet)
    width = len(train.mean)
    if len(held_out.mean) != width:
        raise ToolError(BAD_DATA, f"held-out rows are {len(held_out.mean)} wide, training rows "
                        f"{width}")
    if bad := [k for k in options.k if not 0 <= k <= width]:
        raise ToolError(USAGE, f"--k {bad[0]} is not in 0 to {width}")
    if np.trace(held_out.scatter) == 0:
        raise ToolError(BAD_DATA, "the held-out rows are all alike: FVU is not defined")
    result = pca_fvu(train, held_out, options.k)
    for k, fvu in result.items():
        print(f"PCA rank {k}: FVU {fvu:.4f}  ({train.rows:,} training rows, {held_out.rows:,} "
              f"held-out rows, width {width})")
    if options.json:
        Path(options.json).write_text(json.dumps({
            "data": str(data), "train_rows": train.rows, "eval_rows": held_out.rows, "d_in": width,
            "pca_fvu": {str(k): fvu for k, fvu in result.items()}}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main_guard("pca_yardstick", main))
