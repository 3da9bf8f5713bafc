"""A table's rows against their bands."""

import math
import re
from html import escape

from .charts import short, svg
from .lab_charts import diamond

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"


def band_of(text: str) -> tuple[float | None, float | None]:
    """(low, high) of "0.54 to 0.65", ">= 0.95", "<= 3"; (None, None) of anything else."""
    if found := re.fullmatch(rf"({NUMBER}) to ({NUMBER})", text):
        return float(found[1]), float(found[2])
    if found := re.fullmatch(rf"(>=|<=) ({NUMBER})", text):
        return (float(found[2]), None) if found[1] == ">=" else (None, float(found[2]))
    return None, None


def reported_of(text: str) -> tuple[float, float] | None:
    """(value, spread) of ".566 +- .011" or "9.4"."""
    found = re.fullmatch(rf"({NUMBER})(?: \+- ({NUMBER}))?", text.strip())
    return (float(found[1]), float(found[2] or 0)) if found else None


def _scale(low: float | None, high: float | None, values: list[float]) -> tuple[float, float]:
    """What stands at the strip's ends: the band is its middle half, or with one end the half that is allowed."""
    if low is not None and high is not None:
        half = (high - low) / 2 or abs(high) * 0.1 or 1.0
        return low - half, high + half
    edge = low if low is not None else high
    reach = max([abs(v - edge) for v in values] + [abs(edge) * 0.1]) * 1.15 or 1.0
    return edge - reach, edge + reach


LONGEST, STRIP, LINE = 54, 250, 22  # letters of a name; pixels of a strip, from row to row


def rows_chart(title: str, rows: list[dict], axis: tuple[float, float] | None = None) -> str:
    """Rows of a table that have a number of ours: each on a scale of its own, its band in the middle, or all on
    `axis`. "" where there are none."""
    rows = [row for row in rows if row["ours"] is not None and (axis or row["band"])]
    if not rows:
        return ""
    left = 24 + 6.6 * max(len(_name(row)) for row in rows)
    parts, width = [], math.ceil(left + STRIP + (150 if axis else 190))
    for i, row in enumerate(rows):
        parts += _strip(row, left, 8 + i * LINE + LINE / 2, axis)
    height = 16 + LINE * len(rows)
    if axis:
        parts += [f'<text class="tick" x="{left + STRIP * s:.0f}" y="{height + 6}" text-anchor="middle">'
                  f"{short(axis[0] + (axis[1] - axis[0]) * s)}</text>" for s in (0, 0.25, 0.5, 0.75, 1)]
        height += 14
    return svg(title, parts, width, height)


def _name(row: dict) -> str:
    name = row["what"].strip()
    return name if len(name) <= LONGEST else name[:LONGEST - 1] + "…"


def _strip(row: dict, left: float, y: float, axis: tuple[float, float] | None) -> list[str]:
    low, high = band_of(row["band"])
    reported, ours, sd = reported_of(row["reported"]), row["ours"], row["sd"] or 0
    ends = axis or _scale(low, high, [ours] + ([reported[0]] if reported else []))

    def at(value: float) -> float:
        return left + STRIP * min(1, max(0, (value - ends[0]) / (ends[1] - ends[0])))

    kind = "s1" if row["verdict"] in ("MISSED", "DOES NOT HOLD") else "s0"
    name = _name(row)
    parts = [f'<text class="label" x="{left - 10:.0f}" y="{y + 4:.0f}" text-anchor="end">'
             f"{escape(name)}</text>",
             f'<path class="grid" d="M{left:.0f} {y:.0f}H{left + STRIP:.0f}"/>']
    if low is not None or high is not None:
        a, b = at(ends[0] if low is None else low), at(ends[1] if high is None else high)
        parts.append(f'<rect class="band" x="{a:.1f}" y="{y - 7:.0f}" width="{max(b - a, 2):.1f}" height="14">'
                     f"<title>band: {escape(row['band'])}</title></rect>")
    if sd:
        parts.append(f'<path class="whisker {kind}" d="M{at(ours - sd):.1f} {y:.0f}H{at(ours + sd):.1f}"/>')
    parts.append(f'<circle class="dot {kind}" cx="{at(ours):.1f}" cy="{y:.0f}" r="4.5"><title>'
                 f"{escape(name)}: {ours:.4g}</title></circle>")
    if reported:
        parts.append(diamond(at(reported[0]), y, "ink", f"{name}, reported: {reported[0]:.4g}", 4.5))
    spread = f" ± {sd:.2g}" if sd else ""
    outside = "" if ends[0] <= ours <= ends[1] else " (off the scale)"
    parts.append(f'<text class="tick" x="{left + STRIP + 12:.0f}" y="{y + 4:.0f}">{ours:.4g}{spread}{outside}</text>')
    return parts
