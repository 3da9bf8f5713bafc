"""Charts as inline SVG: lines, bars, points. Colours are classes of the page (report_page.py)."""

import math
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 360, 236
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 12, 36
SERIES = 6  # colours; further series repeat them, dashed


def short(value: float) -> str:
    """An axis label: 0.05, 300k, 2M, 1e-5."""
    if value == 0:
        return "0"
    size = abs(value)
    for limit, divisor, suffix in ((1e12, 1e12, "T"), (1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e3, 1e3, "k")):
        if size >= limit:
            return f"{value / divisor:.3g}{suffix}"
    if size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.3g}"


@dataclass
class Axis:
    """Values to pixels, and where labels stand."""

    low: float
    high: float
    log: bool = False
    ticks: list[float] = field(default_factory=list)

    @classmethod
    def over(cls, values: list[float], log: bool = False, zero: bool = False, wanted: int = 5):
        values = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [0.1, 1]
        low, high = min(values), max(values)
        return cls._log(low, high) if log else cls._linear(min(low, 0) if zero else low, high, wanted)

    @classmethod
    def _linear(cls, low: float, high: float, wanted: int):
        if high <= low:
            low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
        raw = (high - low) / wanted
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= raw * 0.999)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = [round(i * step, 12) for i in range(first, last + 1)]
        return cls(ticks[0], ticks[-1], False, ticks)

    @classmethod
    def _log(cls, low: float, high: float):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
            marks = [m * 10.0**e for e in decades for m in steps]
            inside = [m for m in marks if low * 0.999 <= m <= high * 1.001]
            if len(inside) >= 4:
                break
        while len(inside) > 6:
            inside = inside[::2]
        return cls(low / 1.06, high * 1.06, True, inside)

    def share(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass
class Series:
    name: str
    points: list[tuple[float, float]]
    index: int          # of its colour
    dots: bool = False  # separate measurements, marked as such


def classes(index: int) -> str:
    return f"s{index % SERIES}" + (" again" if index >= SERIES else "")


def frame(x: Axis, y: Axis, x_name: str) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in y.ticks:
        at = bottom - y.share(tick) * (bottom - TOP)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
                     f'<text class="tick" x="{LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">'
                     f'{short(tick)}</text>')
    for tick in x.ticks:
        at = LEFT + x.share(tick) * (right - LEFT)
        # The first and last label stay inside.
        anchor = "end" if at > right - 12 else "middle"
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 16}" text-anchor="{anchor}">'
                     f'{short(tick)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
                 f'<text class="name" x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 3}" '
                 f'text-anchor="middle">{escape(x_name)}</text>')
    return parts


def svg(title: str, parts: list[str], width: int = WIDTH, height: int = HEIGHT) -> str:
    return (f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
            f'{"".join(parts)}</svg>')


def line_chart(title: str, series: list[Series], x_name: str, log: bool = False,
               zero: bool = False) -> str:
    """Lines over x; a value that is not finite (or not above 0 on a log axis) ends its line."""
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points]
    x, y = Axis.over(xs, wanted=4), Axis.over(ys, log, zero)
    if not x.log and xs:
        x.low, x.high = 0, max(max(xs), 1)
        x.ticks = [t for t in x.ticks if x.low <= t <= x.high]
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(point):
        return (LEFT + x.share(point[0]) * (right - LEFT),
                bottom - y.share(point[1]) * (bottom - TOP))

    parts = frame(x, y, x_name)
    for one in series:
        for run in _unbroken(one.points, log):
            at = [place(p) for p in run]
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in at)
            parts.append(f'<polyline class="line {classes(one.index)}'
                         f'{" held" if one.dots else ""}" points="{path}"/>')
            if one.dots or len(run) == 1:
                parts += [f'<circle class="dot {classes(one.index)}" cx="{a:.1f}" cy="{b:.1f}" '
                          f'r="3.2"><title>{escape(one.name)}: {p[1]:.5g} at {short(p[0])}</title>'
                          '</circle>' for (a, b), p in zip(at, run)]
    return svg(title, parts)


def _unbroken(points, log: bool):
    run = []
    for point in points:
        if math.isfinite(point[1]) and (point[1] > 0 or not log):
            run.append(point)
        elif run:
            yield run
            run = []
    if run:
        yield run


def bar_chart(title: str, edges: list[float], counts: list[int], x_name: str, index: int,
              bar_names: list[str]) -> str:
    """A histogram: counts[i] between edges[i] and edges[i + 1]."""
    x, y = Axis.over(edges, wanted=5), Axis.over(counts, zero=True)
    x.low, x.high = edges[0], edges[-1]
    x.ticks = [t for t in x.ticks if x.low <= t <= x.high]
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = frame(x, y, x_name)
    for i, count in enumerate(counts):
        if not count:
            continue
        a, b = (LEFT + x.share(e) * (right - LEFT) for e in edges[i:i + 2])
        top = bottom - y.share(count) * (bottom - TOP)
        parts.append(f'<rect class="bar s{index % SERIES}" x="{a + .5:.1f}" y="{top:.1f}" '
                     f'width="{max(b - a - 1, 1):.1f}" height="{bottom - top:.1f}">'
                     f'<title>{escape(bar_names[i])}</title></rect>')
    return svg(title, parts)


def scatter_chart(title: str, points: list[tuple[float, float, str] | None], x_name: str,
                  log_x: bool, zero_y: bool = False) -> str:
    """Labelled points (x, y, name), coloured in their order; None is left out, its colour, too."""
    there = [p for p in points if p]
    x = Axis.over([p[0] for p in there], log_x, wanted=4)
    y = Axis.over([p[1] for p in there], zero=zero_y)
    if not log_x:  # room beside the outermost points
        room = (x.high - x.low) * 0.04
        x.low, x.high = x.low - room, x.high + room
    else:
        x.low, x.high = x.low / 1.15, x.high * 1.15
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts, taken = frame(x, y, x_name), []
    for i, point in enumerate(points):
        if not point:
            continue
        px, py, name = point
        a = LEFT + x.share(px) * (right - LEFT)
        b = bottom - y.share(py) * (bottom - TOP)
        parts.append(f'<circle class="dot {classes(i)}" cx="{a:.1f}" cy="{b:.1f}" r="5">'
                     f'<title>{escape(name)}: {py:.5g} at {px:.4g}</title></circle>')
        if len(points) <= 12:
            parts.append(_label(a, b, name, right, taken))
    return svg(title, parts)


def _label(a: float, b: float, name: str, right: float, taken: list) -> str:
    """Beside its point, on the side that has room, unless another label is there."""
    name = name if len(name) <= 18 else "…" + name[-17:]
    width = 6.4 * len(name)
    before = a + 9 + width > right
    start, y = (a - 9 - width if before else a + 9), b + 4
    for low, high, other in taken:
        if start < high and low < start + width and abs(other - y) < 12:
            return ""
    taken.append((start, start + width, y))
    return (f'<text class="label" x="{a - 9 if before else a + 9:.1f}" y="{y:.1f}" '
            f'text-anchor="{"end" if before else "start"}">{escape(name)}</text>')
