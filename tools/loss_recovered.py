#!/usr/bin/env python3
"""How much of a language model's loss dictionaries keep, spliced in where their rows came from.

    tools/loss_recovered.py --model smollm2 --data acts --dictionary runs/a my_sae

On the held-out windows of tokens of a harvest, the activations at its site are replaced, at the
positions that the shards hold, by what each dictionary (a run, or a SAELens or sparsify folder)
makes of them, by zeros and by the mean training row. CE is the mean loss in nats of the tokens
after those positions, KL the mean divergence of the model's next-token distribution.

ce_loss_score (CE_zero - CE) / (CE_zero - CE_clean), kl_div_score (KL_zero - KL) / KL_zero; the
names with _mean say the same against the mean row, which is the harder one to be better than.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from megadict_tools.environment import use_environment

use_environment()

import numpy as np

from megadict_tools.errors import (BAD_DATA, ERROR, USAGE, OneLineParser, ToolError, add_quiet,
                                   main_guard, positive, refuse_output_file)

MEAN_ROWS = 1 << 20      # training rows the mean is taken of, at most
ENOUGH_TOKENS = 16384
SAME_ROWS = 0.05         # the model's rows may differ from the shards' by this share, as a median
SCORES = ("ce_loss_score", "ce_loss_score_mean", "kl_div_score", "kl_div_score_mean")


def make_parser() -> OneLineParser:
    parser = OneLineParser(prog="loss_recovered", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="smollm2", help="the model of the harvest: smollm2, a folder with a "
        "Hugging Face causal language model, or a GGUF file (default smollm2)")
    add("--data", required=True, metavar="DIR", help="folder of the harvest's shards, with eval/")
    add("--eval", metavar="DIR", help="held-out shards (default DATA/eval)")
    add("--dictionary", nargs="+", action="extend", required=True, metavar="FOLDER",
        help="a run, or a dictionary of SAELens or sparsify; as many as wanted")
    add("--tokens", type=positive, default=ENOUGH_TOKENS, metavar="N",
        help="held-out tokens, in whole windows (default 16384)")
    add("--text", nargs="+", default=[], metavar="FILE", help="the text of the harvest; wanted "
        "only where it left rows out (--drop_first, --max_norm_multiple)")
    add("--separator", default="<|endoftext|>", help="as in the harvest")
    add("--batch", type=positive, default=8, help="windows per forward pass (default 8)")
    add("--compute", default="float32", choices=("float32", "bfloat16"),
        help="of the model (default float32)")
    add("--megadict", metavar="FILE", help="the binary that exports runs (default: this clone's)")
    add("--json", metavar="FILE", help="write the result here too")
    add("--threads", type=positive, help="default: the processors this process may use")
    add_quiet(parser)
    return parser


@dataclass
class Sums:
    """Over the scored tokens, and for a dictionary over the spliced rows."""

    ce: float = 0.0
    kl: float = 0.0
    residual_sq: float = 0.0
    active: int = 0


class Measure:
    """Runs the windows with every replacement and adds up."""

    def __init__(self, splice, mean_row, dictionaries):
        self.splice, self.mean_row, self.dictionaries = splice, mean_row, dictionaries
        self.clean, self.zero, self.mean = Sums(), Sums(), Sums()
        self.of = [Sums() for _ in dictionaries]
        self.tokens = self.rows = 0
        self.sum = self.sum_sq = 0.0

    def add(self, windows):
        import torch

        ids, mask = padded(windows)
        rows, logits = self.splice.clean(ids, mask)
        check_rows(rows, windows)
        # Predictions made at a spliced position of a token that is there.
        lengths = torch.tensor([len(w.tokens) for w in windows])
        self.scored = mask[:, :-1] & (torch.arange(1, mask.shape[1]) < lengths[:, None])
        self.targets = ids[:, 1:][self.scored]
        self.clean_log_p = self._log_p(logits)
        del logits
        self._score(self.clean, self.clean_log_p)
        if self.tokens == 0:
            self._check_splice(rows)
        self._spliced(self.zero, torch.zeros_like(rows))
        self._spliced(self.mean, self.mean_row.expand_as(rows))
        for sums, dictionary in zip(self.of, self.dictionaries):
            rebuilt, active = dictionary.reconstruct(rows)
            sums.residual_sq += float((rows - rebuilt).double().square().sum())
            sums.active += active
            self._spliced(sums, rebuilt)
        self.tokens += len(self.targets)
        self._add_rows(rows.double())

    def _add_rows(self, rows):
        shifted = rows - self.mean_row.double()
        self.rows += len(rows)
        self.sum = self.sum + shifted.sum(dim=0)
        self.sum_sq += float(shifted.square().sum())

    def variance(self) -> float:
        """Sum of squared deviations of the rows from their own mean."""
        return self.sum_sq - float(self.sum.square().sum()) / self.rows

    def _log_p(self, logits):
        return logits[:, :-1][self.scored].float().log_softmax(dim=-1)

    def _spliced(self, sums: Sums, rows):
        self._score(sums, self._log_p(self.splice.spliced(rows)))

    def _score(self, sums: Sums, log_p):
        sums.ce -= float(log_p.gather(1, self.targets[:, None]).double().sum())
        if log_p is not self.clean_log_p:
            kl = (self.clean_log_p.exp() * (self.clean_log_p - log_p)).sum(dim=1)
            sums.kl += float(kl.double().sum())

    def _check_splice(self, rows):
        """What is spliced is what the model goes on with: its own rows change nothing."""
        same = Sums()
        self._spliced(same, rows)
        off = abs(same.ce - self.clean.ce) / max(len(self.targets), 1)
        if not off < 1e-3:
            raise ToolError(ERROR, f"splicing the model's own rows moves its loss by {off:.3g} nats: "
                            "this model cannot be measured")


def padded(windows):
    import torch

    longest = max(len(w.tokens) for w in windows)
    ids = torch.zeros(len(windows), longest, dtype=torch.long)
    mask = torch.zeros(len(windows), longest, dtype=torch.bool)
    for i, window in enumerate(windows):
        ids[i, :len(window.tokens)] = torch.from_numpy(window.tokens)
        mask[i, :len(window.tokens)] = torch.from_numpy(window.kept)
    return ids, mask


def check_rows(rows, windows):
    """The model's rows are those of the shards, up to the precision of either."""
    stored = np.concatenate([w.activations() for w in windows])
    found = rows.numpy()
    if stored.shape != found.shape:
        raise ToolError(BAD_DATA, f"the model's activations are {found.shape[1]} wide, the rows of "
                        f"'{windows[0].shard}' {stored.shape[1]}", "the model of the harvest")
    off = np.linalg.norm(found - stored, axis=1) / np.maximum(np.linalg.norm(stored, axis=1), 1e-30)
    if not np.median(off) < SAME_ROWS:
        raise ToolError(BAD_DATA, f"the model's activations are {np.median(off):.0%} off the rows of "
                        f"'{windows[0].shard}' (median)", "the model of the harvest; --eval with "
                        "shards as it wrote them")


def training_mean(folder: Path):
    import torch

    from megadict_tools.shards import read_blocks

    total, rows = 0.0, 0
    for block in read_blocks(folder):
        total = total + block.sum(axis=0, dtype=np.float64)
        rows += len(block)
        if rows >= MEAN_ROWS:
            break
    return torch.from_numpy(total / rows).float()


def chosen(windows, tokens: int) -> list:
    """The first windows that hold `tokens` rows together, long ones first to save padding."""
    taken, rows = [], 0
    for window in windows:
        if rows >= tokens:
            break
        taken.append(window)
        rows += window.rows
    return sorted(taken, key=lambda w: -len(w.tokens))


def check_dictionaries(dictionaries, target, width: int):
    for dictionary in dictionaries:
        if len(dictionary.b_dec) != width:
            raise ToolError(USAGE, f"--dictionary '{dictionary.name}' is {len(dictionary.b_dec)} "
                            f"wide, the rows {width}")
        if dictionary.hook and dictionary.hook != target.hook:
            raise ToolError(USAGE, f"--dictionary '{dictionary.name}' was trained at "
                            f"{dictionary.hook}, the rows are from {target.hook}")


def ratio(above: float, below: float) -> float | None:
    return above / below if below else None


def results(measure: Measure) -> dict:
    m, tokens = measure, measure.tokens
    ce = {name: sums.ce / tokens for name, sums in
          (("clean", m.clean), ("zero", m.zero), ("mean", m.mean))}
    kl = {name: sums.kl / tokens for name, sums in (("zero", m.zero), ("mean", m.mean))}
    rows = []
    for sums, dictionary in zip(m.of, m.dictionaries):
        own_ce, own_kl = sums.ce / tokens, sums.kl / tokens
        rows.append({
            "dictionary": dictionary.name, "format": dictionary.format,
            "n_latents": dictionary.latents, "ce": own_ce, "kl": own_kl,
            "ce_loss_score": ratio(ce["zero"] - own_ce, ce["zero"] - ce["clean"]),
            "ce_loss_score_mean": ratio(ce["mean"] - own_ce, ce["mean"] - ce["clean"]),
            "kl_div_score": ratio(kl["zero"] - own_kl, kl["zero"]),
            "kl_div_score_mean": ratio(kl["mean"] - own_kl, kl["mean"]),
            "fvu": ratio(sums.residual_sq, m.variance()), "l0": sums.active / m.rows})
    return {"tokens": tokens, "rows": m.rows, "ce_clean": ce["clean"], "ce_zero": ce["zero"],
            "ce_mean": ce["mean"], "kl_zero": kl["zero"], "kl_mean": kl["mean"],
            "dictionaries": rows}


def number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def table(result: dict) -> str:
    rows = [("", "CE", "KL", *SCORES, "FVU", "L0"),
            ("the model as it is", number(result["ce_clean"]), number(0), *[""] * 6),
            ("zeros", number(result["ce_zero"]), number(result["kl_zero"]), *[""] * 6),
            ("mean row", number(result["ce_mean"]), number(result["kl_mean"]), *[""] * 6)]
    for one in result["dictionaries"]:
        rows.append((one["dictionary"], number(one["ce"]), number(one["kl"]),
                     *[number(one[name]) for name in SCORES], number(one["fvu"]),
                     number(one["l0"], 1)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(("  " + row[0].ljust(widths[0]) + "".join(
        "  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))).rstrip()
        for row in rows)


def measured(options, source, target, windows, dictionaries) -> Measure:
    import torch

    from megadict_tools.models import load_model
    from megadict_tools.progress import Progress
    from megadict_tools.splice import Splice

    mean_row = training_mean(Path(options.data))
    check_dictionaries(dictionaries, target, len(mean_row))
    print(f"loss_recovered: loading {source.name}", file=sys.stderr, flush=True)
    dtype = torch.bfloat16 if options.compute == "bfloat16" else torch.float32
    measure = Measure(Splice(load_model(source, dtype, "cpu"), target), mean_row, dictionaries)
    progress = Progress("loss_recovered", sum(w.rows for w in windows), "tokens",
                        quiet=options.quiet)
    order = iter(windows)
    while batch := list(islice(order, options.batch)):
        measure.add(batch)
        progress.advance(sum(w.rows for w in batch))
    progress.close()
    if not measure.tokens:
        raise ToolError(BAD_DATA, "no held-out row has a token after it")
    return measure


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    if options.json:
        refuse_output_file(Path(options.json))
    import torch

    from megadict_tools.dictionaries import read_dictionary
    from megadict_tools.environment import processors
    from megadict_tools.eval_windows import read_target, read_windows
    from megadict_tools.models import find_source, load_tokenizer
    from megadict_tools.shards import find_shards

    torch.set_num_threads(options.threads or processors())
    folder = Path(options.eval or Path(options.data) / "eval")
    source, target = find_source(options.model), read_target(find_shards(folder)[0])
    every = read_windows(folder, source, lambda: load_tokenizer(source), options.text,
                         options.separator.replace("\\n", "\n").replace("\\t", "\t"))
    windows = chosen(every, options.tokens)
    dictionaries = [read_dictionary(name, options.megadict) for name in options.dictionary]
    result = {"model": source.name, "hook": target.hook, "data": str(folder),
              "windows": len(windows),
              **results(measured(options, source, target, windows, dictionaries))}
    print(f"{result['rows']:,} held-out rows of '{folder}' ({len(windows)} windows), "
          f"{target.name} of {source.name}:\n\n{table(result)}")
    if result["rows"] < options.tokens:
        print(f"\nThese are all held-out rows; {options.tokens:,} were asked for.")
    if result["ce_zero"] <= result["ce_clean"] or result["ce_mean"] <= result["ce_clean"]:
        print("\nThis model is not worse without these activations: the CE scores say nothing.")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main_guard("loss_recovered", main))
