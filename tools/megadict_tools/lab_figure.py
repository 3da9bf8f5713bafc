"""A figure of tools/lab_plots.py: panels and what their colours mean, for the page and as an image of its own."""

import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

from .charts import SERIES, WIDTH, classes
from .lab_charts import Trace
from .lab_results import Experiment

HERE = Path(__file__).resolve().parent


@dataclass
class Figure:
    key: str      # of its file: "fig2"
    title: str
    says: str     # HTML
    panels: list[tuple[str, str, str]]       # title, SVG, a line of text
    legend: list[tuple[str, str]]            # classes of its mark, name


def note_of(experiment: Experiment) -> str:
    runs = {len(experiment.of(cell.group)) for cell in experiment.cells}
    if not runs:
        return ""
    low, high = min(runs), max(runs)
    count = f"{low}" if low == high else f"{low} to {high}"
    spread = " Shades and whiskers: one standard deviation." if high > 1 else ""
    return f"{count} run{'s' if high > 1 else ''} each.{spread}"


def figure_of(key: str, title: str, says: str, panels: list[tuple[str, str, str]], traces: list[Trace] = (),
              more: list[tuple[str, str]] = ()) -> list[Figure]:
    """[] where no panel has anything to show. `traces` make the legend, and `more`."""
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return []
    legend, names = [], set()
    for trace in traces:
        if (trace.points or trace.reported) and trace.name not in names:
            kind = "level " if trace.level else "" if trace.joined else "spot "
            legend.append((kind + classes(trace.index), trace.name))
            names.add(trace.name)
    if any('class="reported' in svg for _, svg, _ in panels):
        legend.append(("hollow", "reported"))
    return [Figure(key, title, says, panels, legend + list(more))]


# ---- on the page -----------------------------------------------------------------------------------

def html_of(figure: Figure) -> str:
    items = "".join(f'<li class="{kind}">{escape(name)}</li>' for kind, name in figure.legend)
    legend = f'<ul class="legend">{items}</ul>' if items else ""
    panels = "".join(_panel(*panel) for panel in figure.panels)
    return (f'<h3 class="of-figure">{escape(figure.title)}</h3><p class="soft">{figure.says}</p>{legend}'
            f'<div class="charts">{panels}</div>')


def _size(svg: str) -> tuple[int, int]:
    found = re.match(r'<svg viewBox="0 0 (\d+) (\d+)"', svg)
    return int(found[1]), int(found[2])


def _panel(title: str, svg: str, below: str) -> str:
    caption = f"<figcaption>{below}</figcaption>" if below else ""
    head = f"<h4>{escape(title)}</h4>{caption}"
    if _size(svg)[0] <= WIDTH:
        return f"<figure>{head}{svg}</figure>"
    return (f'<figure class="wide">{head}<div class="scroll plain" tabindex="0" role="region" '
            f'aria-label="{escape(title)}">{svg}</div></figure>')


# ---- an image --------------------------------------------------------------------------------------

def page_css() -> str:
    return "".join((HERE / name).read_text() for name in ("report_page.css", "lab_charts.css", "lab_page.css"))


def image_css() -> str:
    """The page's rules of charts, light, without variables: programs other than browsers know none."""
    page = (HERE / "report_page.css").read_text()
    light = dict(re.findall(r"(--[\w-]+): (#\w+)", page.split("@media")[0]))
    shared = re.findall(r"^((?:svg text|\.(?:grid|axis|line|dot)\b)[^{}]*)\{([^{}]*)\}", page, re.M)
    own = re.findall(r"^((?:svg text)?\.[^{}]+)\{([^{}]*)\}", (HERE / "lab_charts.css").read_text(), re.M)
    rules = []
    for selector, body in shared + own:
        colours = [(f".s{i}", f"var(--s{i})") for i in range(SERIES)] if "var(--c)" in body else []
        colours.append(("", "none"))
        for suffix, colour in colours:
            said = re.sub(r"var\((--[\w-]+)\)", lambda found: light[found[1]], body.replace("var(--c)", colour))
            rules.append(f"{selector.strip()}{suffix} {{{said}}}")
    return "\n".join(rules + [f"svg text.head {{font-size: 17px; font-weight: 600; fill: {light['--ink']}}}",
                              f"svg text.panel {{font-size: 13.5px; font-weight: 600; fill: {light['--ink']}}}",
                              f".paper {{fill: {light['--card']}}}"])


GAP, HEAD, MARK = 24, 40, 26


def image_of(figure: Figure) -> str:
    """Up to three panels in a line, the legend below."""
    sizes = [_size(svg) for _, svg, _ in figure.panels]
    columns = (2 if len(sizes) == 4 else min(3, len(sizes))) if all(w == WIDTH for w, _ in sizes) else 1
    below = 18 if any(text for _, _, text in figure.panels) else 0
    width = GAP + max(w for w, _ in sizes) * columns + GAP * columns
    parts, y = [], HEAD
    for row in range(0, len(sizes), columns):
        for i, (title, svg, says) in enumerate(figure.panels[row:row + columns]):
            w, h = sizes[row + i]
            x = GAP + i * (w + GAP)
            place = f'<svg overflow="visible" x="{x}" y="{y + 28 + below}" width="{w}" height="{h}" '
            parts.append(f'<text class="panel" x="{x}" y="{y + 18}">{escape(title)}</text>'
                         f'<text class="tick" x="{x}" y="{y + 34}">{says}</text>'
                         + svg.replace("<svg ", place, 1))
        y += 28 + below + max(h for _, h in sizes[row:row + columns]) + 14
    marks, y = _marks(figure.legend, width, y)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}" '
            f'font-family="Helvetica, Liberation Sans, DejaVu Sans, sans-serif">\n<style>{image_css()}</style>\n'
            f'<rect class="paper" width="{width}" height="{y}"/>\n<text class="head" x="{GAP}" y="27">'
            f'{escape(figure.title)}</text>\n' + "\n".join(parts + marks) + "\n</svg>\n")


def _marks(legend: list[tuple[str, str]], width: int, y: int) -> tuple[list[str], int]:
    parts, x = [], GAP
    for kind, name in legend:
        wide = MARK + 7 * len(name) + 18
        if x + wide > width and x > GAP:
            x, y = GAP, y + 20
        middle, colour = y + 8, kind.split()[-1]
        if kind == "hollow":
            mark = f'<path class="reported ink" d="M{x + 9} {middle - 5}l5 5l-5 5l-5 -5Z"/>'
        elif kind.startswith("spot"):
            mark = f'<circle class="dot {colour}" cx="{x + 9}" cy="{middle}" r="4"/>'
        elif kind == "band":
            mark = f'<rect class="band" x="{x}" y="{middle - 5}" width="18" height="10"/>'
        elif kind == "border":
            mark = f'<path class="border" d="M{x} {middle}h18"/>'
        else:
            of = "level" if kind.startswith("level") else "line again" if "again" in kind else "line"
            colour = next(word for word in kind.split() if word[0] == "s")
            mark = f'<path class="{of} {colour}" d="M{x} {middle}h18"/>'
        parts.append(f'{mark}<text class="label" x="{x + MARK}" y="{middle + 4}">{escape(name)}</text>')
        x += wide
    return parts, y + 28 if legend else y
