#!/usr/bin/env python3
"""Figures of the seeds from the laboratory's results: one HTML page, and every figure as an image (SVG).

    megadict lab run all --quick --out lab
    tools/lab_plots.py lab
    tools/lab_plots.py lab --only frontier regimes --out figures

Reads OUT/NAME/result.json and OUT/NAME_quick/result.json. What the seeds' authors report is drawn beside what was
measured, unless the experiment was run on a problem of the user's own. The page needs no network and no other file.
"""

import argparse
import os
import sys
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from megadict_tools.environment import use_environment

use_environment()

from megadict_tools.errors import USAGE, OneLineParser, ToolError, main_guard

VERDICTS = {"met": ("met", "met"), "MISSED": ("missed", "missed"), "holds": ("met", "holds"),
            "DOES NOT HOLD": ("missed", "does not hold"), "-": ("", "–")}


def make_parser() -> OneLineParser:
    parser = OneLineParser(prog="lab_plots", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", metavar="OUT", type=Path, help="--out of megadict lab run")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of index.html and the images (default OUT/plots)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME",
                        help="these experiments, or folders of OUT: known_codes, known_codes_quick")
    return parser


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToolError(USAGE, f"cannot write to '{folder}': {error.strerror}", "--out names a folder") from None


def write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


# ---- the page --------------------------------------------------------------------------------------

def title_of(experiment) -> str:
    return experiment.name.replace("_", " ") + (", quick" if experiment.quick else "")


def seconds(value) -> str:
    return "–" if not isinstance(value, int | float) else f"{value:,.0f} s" if value >= 1 else f"{value:.1f} s"


def overview(experiments) -> str:
    from megadict_tools.report_page import table

    rows = []
    for e in experiments:
        count = e.verdicts()
        missed = f'<span class="missed">{count["MISSED"]}</span>' if count["MISSED"] else "0"
        claims = count["holds"] + count["DOES NOT HOLD"]
        rows.append([f'<a href="#{e.folder.name}">{escape(title_of(e))}</a>', escape(str(e.facts.get("summary", ""))),
                     escape(str(e.facts.get("items", ""))), str(count["met"]), missed,
                     f"{count['holds']} of {claims}" if claims else "–", str(count["-"]),
                     seconds(e.facts.get("seconds"))])
    return table("Bands that the means over runs meet and miss; claims as the seeds "
                 "assert them; lines without either, or whose cells were not run. "
                 "Time of one core.", ["Experiment", "What", "Items", "Met", "Missed", "Claims that hold", "No band", "Time"], rows,
                 words=2, kind="overview")


def verdicts(experiment) -> str:
    from megadict_tools.report_page import table

    rows = []
    for row in experiment.table:
        kind, said = VERDICTS.get(row["verdict"], ("", escape(row["verdict"])))
        if row["ours"] is None:
            ours = "not run"
        else:
            ours = f"{row['ours']:.4g}" + (f" ± {row['sd'] or 0:.2g}" if row["runs"] > 1 else "")
        note = f' <span class="soft">{escape(str(row["note"]))}</span>' if row.get("note") else ""
        rows.append([escape(row["what"].strip()), escape(row["reported"].replace("+-", "±")) or "–", ours,
                     escape(row["band"]) or "–", f'<span class="{kind}">{said}</span>{note}'])
    return table(f"{escape(title_of(experiment))}: reported, ours (mean ± standard deviation over runs), the band.",
                 ["What", "Reported", "Ours", "Band", "Verdict"], rows, kind="verdicts")


def section(experiment, figures) -> str:
    from megadict_tools.lab_figure import html_of

    count = experiment.verdicts()
    judged = count["met"] + count["MISSED"]
    said = (f"{count['met']} of {judged} bands met, " if judged else "No bands, ") + f"{len(experiment.table)} lines"
    key, opened = experiment.folder.name, " open" if len(experiment.table) <= 25 else ""
    return (f'<section aria-labelledby="{escape(key)}"><h2 id="{escape(key)}">{escape(title_of(experiment))}</h2>'
            f"<p>{escape(str(experiment.facts.get('summary', '')))}</p>{''.join(map(html_of, figures))}"
            f"<details{opened}><summary>{said}</summary>{verdicts(experiment)}</details></section>")


def page_text(experiments, figures) -> str:
    from megadict_tools.lab_figure import page_css
    from megadict_tools.shards import tool_version

    machines = dict.fromkeys(str(e.facts.get("machine", {}).get("processor", "")) for e in experiments
                             if isinstance(e.facts.get("machine"), dict))
    where = "; ".join(m for m in machines if m)
    body = "".join(section(e, found) for e, found in zip(experiments, figures))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="megadict {tool_version()}">
<link rel="icon" href="data:,">
<title>The laboratory · Megadict</title>
<style>
{page_css()}</style>
</head>
<body>
<main>
<header>
<p class="kicker">Megadict · the laboratory</p>
<h1>The seeds' experiments, reported and measured</h1>
<p class="soft">{escape(where)}</p>
{overview(experiments)}
</header>
{body}
<footer>Written by megadict {tool_version()}, tools/lab_plots.py.</footer>
</main>
</body>
</html>
"""


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    from megadict_tools.lab_figure import image_of
    from megadict_tools.lab_figures import FIGURES, figures_of
    from megadict_tools.lab_results import read_experiments

    experiments = read_experiments(options.results, options.only, list(FIGURES))
    figures = [figures_of(experiment) for experiment in experiments]
    out = options.out or options.results / "plots"
    make_folder(out)
    images = [(out / f"{e.folder.name}_{figure.key}.svg", figure) for e, found in zip(experiments, figures)
              for figure in found]
    for path, figure in images:
        write(path, image_of(figure))
    page = out / "index.html"
    write(page, page_text(experiments, figures))
    met, missed = (sum(e.verdicts()[v] for e in experiments) for v in ("met", "MISSED"))
    print(f"lab_plots: {len(experiments)} experiments, {met} of {met + missed} bands met; wrote '{page}' and "
          f"{len(images)} images beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main_guard("lab_plots", main))
