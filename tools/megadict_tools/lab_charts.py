"""Charts of the laboratory's results, beside those of charts.py and in their look: lines and points with their
spread and with what was reported, maps of numbers."""

import math
from dataclasses import dataclass, field
from html import escape

from .charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, classes, frame, short, svg

X0, X1, Y0, Y1 = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, TOP  # of the area inside the axes


@dataclass
class Point:
    x: float
    y: float
    sd: float = 0.0


@dataclass
class Trace:
    """What one method gives: `points` joined by a line, or marked; `reported` are the seeds'."""

    name: str
    index: int  # of its colour
    points: list[Point] = field(default_factory=list)
    joined: bool = True
    marked: bool = False
    level: bool = False  # one number that does not depend on x: a line across
    reported: list[Point] = field(default_factory=list)


def _kept(point: Point, log_x: bool, log_y: bool) -> bool:
    finite = math.isfinite(point.x) and math.isfinite(point.y)
    return finite and (point.x > 0 or not log_x) and (point.y > 0 or not log_y)


def _ends(point: Point, log_y: bool) -> tuple[float, float]:
    low = point.y - point.sd
    return (low if low > 0 or not log_y else point.y), point.y + point.sd


def diamond(a: float, b: float, kind: str, title: str, size: float = 5) -> str:
    return (f'<path class="reported {kind}" d="M{a:.1f} {b - size:.1f}L{a + size:.1f} {b:.1f}L{a:.1f} '
            f'{b + size:.1f}L{a - size:.1f} {b:.1f}Z"><title>{escape(title)}</title></path>')


class Area:
    """Values to pixels inside the axes."""

    def __init__(self, x: Axis, y: Axis):
        self.x, self.y = x, y

    def a(self, value: float) -> float:
        return X0 + self.x.share(value) * (X1 - X0)

    def b(self, value: float) -> float:
        return Y0 - self.y.share(value) * (Y0 - Y1)

    def whisker(self, point: Point, kind: str, at: float | None = None) -> str:
        if point.sd <= 0:
            return ""
        low, high = _ends(point, self.y.log)
        a = self.a(point.x) if at is None else at
        return f'<path class="whisker {kind}" d="M{a:.1f} {self.b(low):.1f}V{self.b(high):.1f}"/>'

    def ribbon(self, points: list[Point], kind: str) -> str:
        if len(points) < 2 or not any(p.sd for p in points):
            return ""
        above = [(p.x, _ends(p, self.y.log)[1]) for p in points]
        below = [(p.x, _ends(p, self.y.log)[0]) for p in reversed(points)]
        path = " ".join(f"{self.a(x):.1f},{self.b(y):.1f}" for x, y in above + below)
        return f'<polygon class="ribbon {kind}" points="{path}"/>'

    def line(self, points: list[Point], kind: str) -> str:
        path = " ".join(f"{self.a(p.x):.1f},{self.b(p.y):.1f}" for p in points)
        return f'<polyline class="line {kind}" points="{path}"/>'

    def dot(self, point: Point, kind: str, title: str, at: float | None = None) -> str:
        a = self.a(point.x) if at is None else at
        return (f'<circle class="dot {kind}" cx="{a:.1f}" cy="{self.b(point.y):.1f}" r="4">'
                f"<title>{escape(title)}</title></circle>")


def _said(trace: Trace, point: Point, what: str = "") -> str:
    spread = f" ± {point.sd:.2g}" if point.sd else ""
    return f"{trace.name}{what}: {point.y:.4g}{spread} at {short(point.x)}"


def _draw(area: Area, trace: Trace) -> list[str]:
    kind, points = classes(trace.index), trace.points
    if trace.level:
        b = area.b(points[0].y)
        return [f'<path class="level {kind}" d="M{X0} {b:.1f}H{X1}"><title>'
                f"{escape(f'{trace.name}: {points[0].y:.4g}')}</title></path>"]
    parts = []
    if trace.joined:
        parts += [area.ribbon(points, kind) if not trace.marked else "", area.line(points, kind)]
    if trace.marked or not trace.joined or len(points) == 1:
        for point in points:
            parts += [area.whisker(point, kind), area.dot(point, kind, _said(trace, point))]
    return parts


def _span(values: list[float], log: bool, room: float, zero: bool = False) -> Axis:
    """`room`: beside the outermost values, a share of the axis. What is near to constant needs no log axis."""
    values = [v for v in values if v > 0 or not log]
    axis = Axis.over(values, log and max(values) > 4 * min(values), zero, wanted=4)
    if axis.log:
        by = (axis.high / axis.low)**room
        axis.low, axis.high = axis.low / by, axis.high * by
    elif room:
        by = (axis.high - axis.low) * room
        axis.low, axis.high = axis.low - by, axis.high + by
    return axis


def xy_chart(title: str, traces: list[Trace], x_name: str, log_x: bool = False, log_y: bool = False,
             mark_x: tuple[float, str] | None = None, x_ticks: list[float] | None = None,
             floor: float = -math.inf) -> str:
    """"" where there is nothing of ours to draw. `mark_x`: a place on the x axis and what it says; below `floor`
    nothing is drawn."""
    kept = lambda points: [p for p in points if _kept(p, log_x, log_y) and p.y >= floor]
    traces = [Trace(t.name, t.index, t.points if t.level else kept(t.points), t.joined, t.marked, t.level,
                    kept(t.reported)) for t in traces]
    if not any(t.points and not t.level for t in traces):
        return ""
    shown = [p for t in traces for p in t.points + t.reported]
    xs = [p.x for t in traces for p in ([] if t.level else t.points) + t.reported]
    x = _span(xs + ([mark_x[0]] if mark_x else []), log_x, 0.03 if any(not t.joined or t.marked for t in traces) else 0)
    if not log_x:
        x.ticks = [t for t in x.ticks if x.low <= t <= x.high]
    if x_ticks:
        x.ticks = x_ticks
    y = _span([max(v, floor) for p in shown for v in _ends(p, log_y)], log_y, 0.04 if log_y else 0)
    area, parts = Area(x, y), frame(x, y, x_name)
    if mark_x:
        a = area.a(mark_x[0])
        side, anchor = (5, "start") if a < (X0 + X1) / 2 else (-5, "end")
        parts.append(f'<path class="mark" d="M{a:.1f} {Y0}V{Y1}"/><text class="tick" x="{a + side:.1f}" y="{Y0 - 7}" '
                     f'text-anchor="{anchor}">{escape(mark_x[1])}</text>')
    for trace in traces:
        parts += _draw(area, trace) if trace.points else []
    for trace in traces:
        for point in trace.reported:
            kind = classes(trace.index)
            parts += [area.whisker(point, kind),
                      diamond(area.a(point.x), area.b(point.y), kind, _said(trace, point, ", reported"))]
    return svg(title, parts)


def category_chart(title: str, categories: list[str], traces: list[Trace], log_y: bool = False,
                   zero: bool = False) -> str:
    """Point.x is the number of a category; the traces stand beside each other in it."""
    kept = [(t, [p for p in t.points if _kept(p, False, log_y)], [p for p in t.reported if _kept(p, False, log_y)])
            for t in traces]
    if not any(points for _, points, _ in kept):
        return ""
    values = [v for _, points, reported in kept for p in points + reported for v in _ends(p, log_y)]
    x = Axis(-0.5, len(categories) - 0.5)
    area = Area(x, _span(values, log_y, 0.04 if log_y else 0, zero))
    parts = frame(x, area.y, "")
    slot = (X1 - X0) / len(categories)
    parts += [f'<text class="tick" x="{X0 + (i + .5) * slot:.1f}" y="{Y0 + 16}" text-anchor="middle">'
              f"{escape(name)}</text>" for i, name in enumerate(categories)]
    step = min(34.0, slot / (len(kept) + 0.4))
    for i, (trace, points, reported) in enumerate(kept):
        kind, shift = classes(trace.index), (i - (len(kept) - 1) / 2) * step
        for point in points:
            at = area.a(point.x) + shift
            where = f"{trace.name}, {categories[int(point.x)]}: {point.y:.4g}"
            parts += [area.whisker(point, kind, at), area.dot(point, kind, where, at)]
        for point in reported:
            at = area.a(point.x) + shift + min(11, step / 2.4)
            where = f"{trace.name}, {categories[int(point.x)]}, reported: {point.y:.4g}"
            parts += [area.whisker(point, kind, at), diamond(at, area.b(point.y), kind, where)]
    return svg(title, parts)


# ---- maps ----------------------------------------------------------------------------------------

@dataclass
class Tile:
    """`share` of the colour's full strength, -1 to 1; None = no number of ours."""

    share: float | None
    text: str = ""   # in the tile
    below: str = ""  # what was reported
    says: str = ""


def _fill(share: float | None, strongest: float) -> str:
    if share is None or not math.isfinite(share):
        return 'class="tile none"'
    return (f'class="tile s{0 if share >= 0 else 1}" fill-opacity="'
            f'{strongest * min(1, abs(share)):.3f}"')


def _in_tile(kind: str, x: float, y: float, text: str) -> str:
    return f'<text class="{kind} over" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>'


def map_chart(title: str, columns: list[str], rows: list[str], tiles: list[list[Tile]], x_name: str, y_name: str,
              line: list[tuple[float, float]] = ()) -> str:
    """tiles[row][column], row 0 at the bottom; `line` in columns and rows, (0, 0) the lowest left tile's middle."""
    wide, high = (X1 - X0) / len(columns), (Y0 - Y1) / len(rows)
    parts = [f'<text class="name" x="{(X0 + X1) / 2:.0f}" y="{HEIGHT - 3}" text-anchor="middle">'
             f'{escape(x_name)}</text>'
             f'<text class="name" x="13" y="{(Y0 + Y1) / 2:.0f}" text-anchor="middle" '
             f'transform="rotate(-90 13 {(Y0 + Y1) / 2:.0f})">{escape(y_name)}</text>']
    for c, name in enumerate(columns):
        parts.append(f'<text class="tick" x="{X0 + (c + .5) * wide:.1f}" y="{Y0 + 16}" text-anchor="middle">'
                     f"{escape(name)}</text>")
    texts = []
    for r, name in enumerate(rows):
        top = Y0 - (r + 1) * high
        parts.append(f'<text class="tick" x="{X0 - 7}" y="{top + high / 2 + 4:.1f}" text-anchor="end">'
                     f"{escape(name)}</text>")
        for c, tile in enumerate(tiles[r]):
            left, middle = X0 + c * wide, X0 + (c + .5) * wide
            parts.append(f'<rect {_fill(tile.share, 0.5)} x="{left + 1:.1f}" y="{top + 1:.1f}" width="{wide - 2:.1f}" '
                         f'height="{high - 2:.1f}"><title>{escape(tile.says)}</title></rect>')
            texts.append(_in_tile("label", middle, top + high / 2 - (3 if tile.below else -4), tile.text))
            if tile.below:
                texts.append(_in_tile("tick", middle, top + high / 2 + 13, tile.below))
    inside = [(a, b) for a, b in line if -0.5 <= a <= len(columns) - 0.5 and -0.5 <= b <= len(rows) - 0.5]
    if len(inside) > 1:
        path = " ".join(f"{X0 + (a + .5) * wide:.1f},{Y0 - (b + .5) * high:.1f}" for a, b in inside)
        parts.append(f'<polyline class="border" points="{path}"/>')
    parts += texts
    return svg(title, parts)


def matrix_chart(title: str, rows: list[list[float]]) -> str:
    """A square of numbers of -1 to 1: 1 has the full colour, below 0 is another one."""
    side, top = 204.0, 8.0
    left, size = (WIDTH - side) / 2, 204.0 / max(1, len(rows))
    parts = []
    for r, row in enumerate(rows):
        for c, value in enumerate(row):
            parts.append(f'<rect {_fill(value, 1.0)} x="{left + c * size:.2f}" y="{top + r * size:.2f}" '
                         f'width="{size:.2f}" height="{size:.2f}"><title>{r}, {c}: {value:.3f}</title></rect>')
    parts.append(f'<rect class="box" x="{left}" y="{top}" width="{side}" height="{side}"/>')
    return svg(title, parts)
