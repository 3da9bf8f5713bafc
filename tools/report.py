#!/usr/bin/env python3
"""One HTML page about runs of megadict train: curves, densities, latents in text, configuration.

    tools/report.py runs/a --out report.html
    tools/report.py runs/a runs/b runs/c --out report.html
    tools/report.py runs/a --latents latents.h5 --model smollm2 --out report.html

The page needs no network and no other file. Of what is in a run folder it shows metrics.jsonl,
config.json, eval.json and, where they are there, latents.h5 (megadict eval --latents) and
loss_recovered.json (tools/loss_recovered.py --json).
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from megadict_tools.environment import use_environment

use_environment()

from megadict_tools.errors import (USAGE, OneLineParser, ToolError, add_quiet, main_guard, positive,
                                   refuse_output_file)

HERE = Path(__file__).resolve().parent / "megadict_tools"


def make_parser() -> OneLineParser:
    parser = OneLineParser(prog="report", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="run folders")
    add("--out", required=True, metavar="FILE", help="the page")
    add("--title", help="default: the runs' names")
    add("--latents", nargs="+", default=[], metavar="FILE",
        help="of megadict eval --latents, one for each run in order (default RUN/latents.h5)")
    add("--model", help="whose tokenizer reads the latents' tokens: smollm2, or a folder; without "
        "it no text is shown")
    add("--data", metavar="DIR", help="the shards that were evaluated (default: as the latents' "
        "file says)")
    add("--loss", nargs="+", default=[], metavar="FILE",
        help="of tools/loss_recovered.py --json (default RUN/loss_recovered.json)")
    add("--latents_shown", type=positive, default=60, metavar="N", help="of each run (default 60)")
    add("--contexts", type=positive, default=4, metavar="N", help="texts a latent (default 4)")
    add_quiet(parser)
    return parser


def losses_of(options, runs) -> list[dict]:
    from megadict_tools.run_folder import read_json

    files = options.loss or [p for run in runs if (p := run.folder / "loss_recovered.json").is_file()]
    found = [read_json(Path(file)) for file in files]
    for file, one in zip(files, found):
        if "dictionaries" not in one or "ce_clean" not in one:
            raise ToolError(USAGE, f"'{file}' was not written by tools/loss_recovered.py --json")
    return found


def latents_of(options, runs) -> list:
    """(run, file, latents with their texts) of each run that has a file."""
    from megadict_tools.latents_file import LatentsFile

    if options.latents and len(options.latents) != len(runs):
        raise ToolError(USAGE, f"--latents names {len(options.latents)} files for {len(runs)} runs")
    paths = options.latents or [run.folder / "latents.h5" for run in runs]
    files = [(run, LatentsFile(path)) for run, path in zip(runs, paths)
             if options.latents or path.is_file()]
    found = [(run, file, file.chosen(options.latents_shown, options.contexts))
             for run, file in files]
    if options.model and found:
        add_texts(options, found)
    return found


def add_texts(options, found):
    from megadict_tools.models import find_source, load_tokenizer
    from megadict_tools.progress import Progress

    tokenizer = load_tokenizer(find_source(options.model))
    progress = Progress("report", sum(len(latents) for _, _, latents in found), "latents",
                        quiet=options.quiet)
    for _, file, latents in found:
        file.add_contexts(latents, Path(options.data or file.data), tokenizer, options.contexts)
        progress.advance(len(latents))
    progress.close()


def latents_section(found, with_model: bool) -> str:
    from megadict_tools.report_page import escape, latents_table

    parts = []
    for i, (run, file, latents) in enumerate(found):
        if len(found) > 1:
            parts.append(f'<h3 style="margin-top:24px">{escape(run.name)}</h3>')
        parts.append(latents_table(latents, run.name, i, file.count, file.rows) if latents else
                     "<p>No latent fired.</p>")
    if not with_model:
        parts.append('<p class="under">With <code>--model</code> the texts on which they fire '
                     "most strongly are shown, too.</p>")
    return "".join(parts)


def sections(options, runs, losses, latents) -> list[tuple[str, str, str]]:
    """(key, title, HTML) of what there is something to say about."""
    from megadict_tools import report_page as page

    found = [
        ("frontier", "Quality against cost", page.frontier(runs)),
        ("curves", "Over the training", page.curves(runs)),
        ("loss", "What the language model keeps", page.loss_section(losses)),
        ("densities", "How often latents fire", page.densities(runs)),
        ("latents", "Latents", latents_section(latents, bool(options.model)) if latents else ""),
        ("config", "Configuration", page.config_section(runs)),
    ]
    return [one for one in found if one[2]]


def page_text(options, runs) -> str:
    from megadict_tools import report_page as page
    from megadict_tools.shards import tool_version

    losses, latents = losses_of(options, runs), latents_of(options, runs)
    parts = sections(options, runs, losses, latents)
    title = page.escape(options.title or ", ".join(run.name for run in runs))
    only = losses[0]["dictionaries"][0] if len(losses) == len(runs) == 1 else None
    top = page.facts(runs[0], only) if len(runs) == 1 else page.runs_table(runs)
    nav = "".join(f'<a href="#{key}">{name}</a>' for key, name, _ in parts)
    body = "".join(f'<section aria-labelledby="{key}"><h2 id="{key}">{name}</h2>{html}</section>'
                   for key, name, html in parts)
    kind = "Sparse dictionary" if len(runs) == 1 else f"{len(runs)} sparse dictionaries"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="megadict {tool_version()}">
<link rel="icon" href="data:,">
<title>{title} · Megadict</title>
<style>
{(HERE / "report_page.css").read_text()}</style>
</head>
<body>
<main>
<header>
<p class="kicker">Megadict · {kind}</p>
<h1>{title}</h1>
{top}
<nav aria-label="Sections">{nav}</nav>
</header>
{body}
<footer>Written by megadict {tool_version()}, tools/report.py.</footer>
</main>
<script>
{(HERE / "report_page.js").read_text()}</script>
</body>
</html>
"""


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    from megadict_tools.run_folder import read_run, short_names

    out = Path(options.out)
    refuse_output_file(out)
    runs = [read_run(f, name) for f, name in zip(options.runs, short_names(options.runs))]
    text = page_text(options, runs)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, out)
    print(f"report: wrote '{out}' ({len(text.encode()) / 1024:,.0f} KiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main_guard("report", main))
