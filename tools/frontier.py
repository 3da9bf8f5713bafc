#!/usr/bin/env python3
"""The L0-FVU frontier of a folder of evaluated runs: a table, a CSV file and a plot (SVG).

    tools/frontier.py sweeps/a --out frontier

Takes every JSON file below FOLDER that `megadict eval --json` or the end of a run (final/eval.json)
wrote. On the frontier are the dictionaries that no other one beats in both L0 and FVU. Writes
OUT.csv and OUT.svg; without --out only the table is printed.
"""

import argparse
import csv
import io
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from megadict_tools.errors import (BAD_DATA, ERROR, USAGE, OneLineParser, ToolError, main_guard, one_line,
                                   refuse_output_file)

WIDTH, HEIGHT, MARGIN = 640, 420, 60
COLUMNS = ("name", "n_latents", "l0", "fvu", "explained_variance", "dead_pct", "rows", "frontier")


@dataclass
class Point:
    name: str
    path: Path
    l0: float
    fvu: float
    facts: dict
    frontier: bool = False

    def cell(self, column: str):
        if column in ("name", "l0", "fvu", "frontier"):
            return getattr(self, column)
        return self.facts.get(column)


def read_point(path: Path, root: Path) -> Point | None:
    """None for a JSON file that is something else."""
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ToolError(BAD_DATA, f"cannot read '{path}': {one_line(error)}") from None
    if not isinstance(facts, dict) or not {"fvu", "l0", "rows"} <= facts.keys():
        return None
    values = facts["l0"], facts["fvu"]
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        raise ToolError(BAD_DATA, f"'{path}': l0 or fvu is no number", "an evaluation of rows that differ")
    folder = path.parent.parent if path.parent.name == "final" else path.parent
    name = folder.relative_to(root).as_posix()
    return Point(path.stem if name == "." else name, path, float(values[0]), float(values[1]), facts)


def read_points(root: Path) -> list[Point]:
    if not root.is_dir():
        raise ToolError(USAGE, f"there is no folder '{root}'")
    # A run's own eval.json is that of its last evaluation, which final/ holds, too.
    paths = [p for p in sorted(root.rglob("*.json")) if p.name != "eval.json"
             or not (p.parent / "final" / "eval.json").exists()]
    found = [read_point(path, root) for path in paths]
    points = [point for point in found if point]
    if not points:
        raise ToolError(BAD_DATA, f"no evaluation below '{root}'",
                        "megadict eval --run.dir RUN --data.path DATA --json RUN/eval.json")
    for point in points:  # several of one folder: the file's name tells them apart
        if sum(other.name == point.name for other in points) > 1:
            point.name = point.path.relative_to(root).with_suffix("").as_posix()
    return points


def mark_frontier(points: list[Point]) -> None:
    """A point is beaten by another that is no worse in both and better in one."""
    for point in points:
        point.frontier = not any(
            other.l0 <= point.l0 and other.fvu <= point.fvu and (other.l0, other.fvu) != (point.l0, point.fvu)
            for other in points)


def shown(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "*" if value else ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def table(points: list[Point]) -> str:
    rows = [COLUMNS, *[tuple(shown(point.cell(column)) for column in COLUMNS) for point in points]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in rows)


def csv_text(points: list[Point]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*COLUMNS, "file"))
    for point in points:
        cells = [int(cell) if isinstance(cell, bool) else cell for cell in map(point.cell, COLUMNS)]
        writer.writerow([*cells, point.path])
    return out.getvalue()


def axis(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def svg_text(points: list[Point]) -> str:
    (l0_low, l0_high), (fvu_low, fvu_high) = axis([p.l0 for p in points]), axis([p.fvu for p in points])

    def x(value):
        return MARGIN + (value - l0_low) / (l0_high - l0_low) * (WIDTH - 2 * MARGIN)

    def y(value):
        return HEIGHT - MARGIN - (value - fvu_low) / (fvu_high - fvu_low) * (HEIGHT - 2 * MARGIN)

    bottom, right = HEIGHT - MARGIN, WIDTH - MARGIN
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
             'font-family="sans-serif" font-size="11">', '<rect width="100%" height="100%" fill="white"/>']
    for i in range(6):
        l0, fvu = l0_low + (l0_high - l0_low) * i / 5, fvu_low + (fvu_high - fvu_low) * i / 5
        lines += [f'<line x1="{x(l0):.1f}" y1="{MARGIN}" x2="{x(l0):.1f}" y2="{bottom}" stroke="#ddd"/>',
                  f'<line x1="{MARGIN}" y1="{y(fvu):.1f}" x2="{right}" y2="{y(fvu):.1f}" stroke="#ddd"/>',
                  f'<text x="{x(l0):.1f}" y="{bottom + 16}" text-anchor="middle">{l0:.3g}</text>',
                  f'<text x="{MARGIN - 6}" y="{y(fvu) + 4:.1f}" text-anchor="end">{fvu:.3g}</text>']
    best = sorted((p for p in points if p.frontier), key=lambda p: p.l0)
    path = " ".join(f"{x(p.l0):.1f},{y(p.fvu):.1f}" for p in best)
    lines.append(f'<polyline points="{path}" fill="none" stroke="#1f77b4"/>')
    for p in points:
        colour = "#1f77b4" if p.frontier else "#999"
        lines += [f'<circle cx="{x(p.l0):.1f}" cy="{y(p.fvu):.1f}" r="4" fill="{colour}">'
                  f"<title>{escaped(p.name)}: L0 {p.l0:.4g}, FVU {p.fvu:.4g}</title></circle>"]
        if len(points) <= 30:
            lines.append(f'<text x="{x(p.l0) + 6:.1f}" y="{y(p.fvu) - 6:.1f}" fill="{colour}">{escaped(p.name)}</text>')
    lines += [f'<text x="{WIDTH / 2}" y="{HEIGHT - 14}" text-anchor="middle">active latents per row (L0)</text>',
              f'<text x="16" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 16 {HEIGHT / 2})">'
              "fraction of variance unexplained (FVU)</text>", "</svg>"]
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        raise ToolError(ERROR, f"cannot write '{path}': {error.strerror}") from None


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineParser(prog="frontier", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds evaluated runs, at any depth")
    parser.add_argument("--out", type=Path, help="writes OUT.csv and OUT.svg")
    args = parser.parse_args(arguments)
    if args.out and not args.out.name:
        raise ToolError(USAGE, f"--out '{args.out}' names no file", "--out frontier")
    files = [args.out.parent / f"{args.out.name}.{kind}" for kind in ("csv", "svg")] if args.out else []
    for file in files:
        refuse_output_file(file)
    points = read_points(args.folder)
    mark_frontier(points)
    points.sort(key=lambda point: (point.l0, point.fvu, point.name))
    print(table(points))
    for file, text in zip(files, (csv_text, svg_text)):
        write(file, text(points))
    return 0


if __name__ == "__main__":
    sys.exit(main_guard("frontier", main))
