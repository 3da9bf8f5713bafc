#!/usr/bin/env python3
"""Table and plot of the scaling runs that launch/scaling.sh made in a folder.

    tools/scaling.py scaling

Prints the table and writes scaling.md, scaling.json and scaling.svg beside the points. Tokens/s and
the exposed communication are medians over the steps of rank 0 after the first fifth; efficiency is
against the fewest ranks of the series: tokens/s (weak-n: tokens/s x latents) for each rank. Bytes
are those that rank 0 received in a step, counted, beside the planner's formula.
"""

import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from megadict_tools.errors import BAD_DATA, OneLineParser, ToolError, main_guard
from megadict_tools.progress import size

SERIES = ("strong", "weak-n", "weak-B")
COLOURS = {"strong": "#1b6ca8", "weak-n": "#c0392b", "weak-B": "#2e8b57"}
SKIPPED = 5  # one step in so many, at the start


@dataclass
class Point:
    series: str
    ranks: int
    mesh: str
    n_latents: int
    batch_size: int
    tokens_per_s: float
    efficiency: float
    counted_bytes: float  # of one step, exact formulas only
    formula_bytes: int
    counted_estimates: float  # what depends on the data: how many codes fall on how many latents
    formula_estimates: int
    step_s: float
    exposed_comm_s: float
    planned_step_s: float | None


def read(path: Path):
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise ToolError(BAD_DATA, f"cannot read '{path}': {error.strerror}",
                        "launch/scaling.sh makes it") from error
    except ValueError as error:
        raise ToolError(BAD_DATA, f"'{path}' is not JSON: {error}") from error


def timed_steps(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "tokens_per_s" in line]
    if len(steps) < SKIPPED:
        raise ToolError(BAD_DATA, f"'{run}' has {len(steps)} steps in its log, at least {SKIPPED} "
                        "are needed", "--log.every_steps 1")
    return steps[len(steps) // SKIPPED:]


def after_start(communication: dict, axis: str, name: str, what: str) -> int:
    nothing = {what: 0}
    return (communication[axis].get(name, nothing)[what]
            - communication["start"][axis].get(name, nothing)[what])


def bytes_of_a_step(plan: dict, communication: dict, estimates: bool) -> tuple[float, int]:
    """Counted and planned. A name that several parts of the step share is taken once."""
    planned = {}
    for transfer in plan["transfers"]:
        if transfer["estimate"] == estimates:
            key = (transfer["axis"], transfer["name"])
            planned[key] = planned.get(key, 0) + transfer["bytes"]
    counted = sum(after_start(communication, axis, name, "bytes") for axis, name in planned)
    return counted / after_start(communication, "world", "step sums", "calls"), sum(planned.values())


def read_point(series: str, ranks: int, folder: Path) -> Point:
    plan, run = read(folder / "plan.json"), folder / "run"
    communication = read(run / "communication.json")
    steps = timed_steps(run)
    rate = statistics.median(step["tokens_per_s"] for step in steps)
    exact = bytes_of_a_step(plan, communication, estimates=False)
    estimated = bytes_of_a_step(plan, communication, estimates=True)
    return Point(series, ranks, communication["mesh"], plan["n_latents"], plan["batch_size"], rate,
                 0, *exact, *estimated, plan["batch_size"] / rate,
                 statistics.median(step["comm_s"] for step in steps),
                 plan.get("step_s", {}).get("step"))


def read_points(out: Path) -> tuple[list[Point], list[str]]:
    """The points that are done, and the names of those that are not."""
    try:
        rows = (out / "points.tsv").read_text().splitlines()[1:]
    except OSError as error:
        raise ToolError(BAD_DATA, f"no points.tsv in '{out}'", "launch/scaling.sh makes it") from error
    points, absent = [], []
    for row in rows:
        series, ranks, name = row.split("\t")
        if (out / name / "run" / "final").exists():
            points.append(read_point(series, int(ranks), out / name))
        elif name not in absent:
            absent.append(name)
    if not points:
        raise ToolError(BAD_DATA, f"none of the runs in '{out}' is done", "wait for the jobs")
    for series in SERIES:
        judge([point for point in points if point.series == series])
    return points, absent


def work_rate(point: Point) -> float:
    latents = point.n_latents if point.series == "weak-n" else 1
    return point.tokens_per_s * latents / point.ranks


def judge(points: list[Point]) -> None:
    if not points:
        return
    first = min(points, key=lambda point: point.ranks)
    for point in points:
        point.efficiency = work_rate(point) / work_rate(first)


def ratio(counted: float, formula: float) -> str:
    return f"{counted / formula:.3f}" if formula else "-"


def table(points: list[Point]) -> list[str]:
    head = ["series", "ranks", "mesh", "latents", "batch", "tokens/s", "efficiency", "received a step",
            "/ formula", "estimated part / formula", "exposed comm", "planned / measured step"]
    rows = [[p.series, str(p.ranks), p.mesh, f"{p.n_latents:,}", f"{p.batch_size:,}",
             f"{p.tokens_per_s:,.0f}", f"{100 * p.efficiency:.0f} %",
             size(p.counted_bytes + p.counted_estimates), ratio(p.counted_bytes, p.formula_bytes),
             ratio(p.counted_estimates, p.formula_estimates),
             f"{100 * p.exposed_comm_s / p.step_s:.0f} %",
             f"{p.planned_step_s / p.step_s:.2f}" if p.planned_step_s else "-"] for p in points]
    lines = ["| " + " | ".join(row) + " |" for row in [head, *rows]]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


# ---- the plot: two panels over the number of ranks ---------------------------------------------

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 440, 320, 64, 36, 14, 44


class Panel:
    """Ranks to the right on a log scale; `values` upwards from 0."""

    def __init__(self, offset: int, title: str, ranks: list[int], highest: float):
        self.offset, self.title, self.ranks, self.highest = offset, title, ranks, highest * 1.08

    def x(self, ranks: int) -> float:
        inner = WIDTH - LEFT - RIGHT
        steps = max(1, len(self.ranks) - 1)
        return self.offset + LEFT + inner * self.ranks.index(ranks) / steps

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self.highest

    def frame(self) -> list[str]:
        left, right, bottom = self.offset + LEFT, self.offset + WIDTH - RIGHT, HEIGHT - BOTTOM
        out = [f'<text x="{left}" y="20" font-size="14">{self.title}</text>',
               f'<path d="M{left} {TOP}V{bottom}H{right}" fill="none" stroke="#444"/>',
               f'<text x="{(left + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">ranks</text>']
        for part in range(5):
            value = self.highest * part / 4
            label = f"{value:.2f}" if self.highest < 10 else f"{value:,.0f}"
            out.append(f'<text x="{left - 6}" y="{self.y(value) + 4:.1f}" text-anchor="end">{label}</text>')
            out.append(f'<path d="M{left} {self.y(value):.1f}H{right}" stroke="#ddd"/>')
        out += [f'<text x="{self.x(r):.1f}" y="{bottom + 16}" text-anchor="middle">{r}</text>'
                for r in self.ranks]
        return out

    def line(self, name: str, points: list[tuple[int, float]], dashed: bool = False) -> list[str]:
        places = [(self.x(ranks), self.y(value)) for ranks, value in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dash = ' stroke-dasharray="4 4"' if dashed else ""
        out = [f'<polyline points="{path}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"{dash}/>']
        if not dashed:
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{COLOURS[name]}"/>'
                    for x, y in places]
        return out


def draw(points: list[Point]) -> str:
    ranks = sorted({point.ranks for point in points})
    planned = {point.series: point.planned_step_s for point in points}
    rate = Panel(0, "tokens/s" + (" (dashed: planned)" if any(planned.values()) else ""), ranks,
                 max(max(p.tokens_per_s, p.batch_size / p.planned_step_s if p.planned_step_s else 0)
                     for p in points))
    share = Panel(WIDTH, "efficiency", ranks, max(1.0, *(p.efficiency for p in points)))
    body = [*rate.frame(), *share.frame()]
    for i, series in enumerate(SERIES):
        mine = sorted((p for p in points if p.series == series), key=lambda p: p.ranks)
        if not mine:
            continue
        body += rate.line(series, [(p.ranks, p.tokens_per_s) for p in mine])
        body += share.line(series, [(p.ranks, p.efficiency) for p in mine])
        if all(p.planned_step_s for p in mine):
            body += rate.line(series, [(p.ranks, p.batch_size / p.planned_step_s) for p in mine], True)
        body.append(f'<text x="{WIDTH + 170 + 80 * i}" y="20" fill="{COLOURS[series]}">{series}</text>')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{HEIGHT}" '
            f'font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n'
            + "\n".join(body) + "\n</svg>\n")


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineParser(prog="scaling", description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="--out of launch/scaling.sh")
    out = Path(parser.parse_args(arguments).folder)
    points, absent = read_points(out)
    lines = table(points)
    (out / "scaling.md").write_text("\n".join(lines) + "\n")
    (out / "scaling.json").write_text(json.dumps([asdict(p) for p in points], indent=1) + "\n")
    (out / "scaling.svg").write_text(draw(points))
    print("\n".join(lines))
    if absent:
        print(f"scaling: not done yet: {', '.join(absent)}")
    print(f"scaling: {out / 'scaling.svg'}, scaling.md, scaling.json")
    return 0


if __name__ == "__main__":
    sys.exit(main_guard("scaling", main))
