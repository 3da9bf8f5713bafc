"""Figures that are maps: regimes (Fig 5), the dictionaries' Gram matrices (Fig 9 to 11)."""

import math
import re

from . import lab_reported as reported
from .lab_charts import Point, Tile, Trace, map_chart, matrix_chart, xy_chart
from .lab_figure import Figure, figure_of, note_of
from .lab_results import Experiment
from .lab_training import METHODS

CELL = re.compile(r"M(\d+)_N(\d+)_K(\d+)_(\w+)")


def line_of(latents: float, k: float) -> float:
    """The width that compressed sensing asks for: 2 K ln(N / K)."""
    return 2 * k * math.log(latents / k)


class Grid:
    """The cells of one K."""

    def __init__(self, experiment: Experiment, k: int):
        self.k, self.found = k, {}
        for cell in experiment.cells:
            named = CELL.fullmatch(cell.group)
            if named and int(named[3]) == k and (value := experiment.value(cell.group, "latent_mcc")):
                self.found[int(named[1]), int(named[2]), named[4]] = value
        self.widths = sorted({width for width, _, _ in self.found})
        self.latents = sorted({latents for _, latents, _ in self.found})

    def has(self, *methods: str) -> bool:
        return all(any(m == method for _, _, m in self.found) for method in methods)

    def tiles(self, of, known) -> list[list[Tile]]:
        """`of` and `known`: (M, N) -> ours and what was reported, or None."""
        rows = []
        for width in self.widths:
            rows.append([])
            for latents in self.latents:
                ours, theirs = of(width, latents), known(width, latents)
                text = "–" if ours is None else f"{round(ours, 2) + 0.0:.2f}"
                below = "" if theirs is None else f"({theirs:.2f})"
                says = f"M {width}, N {latents}: {text}" + (f", reported {theirs:.3f}" if below else "")
                rows[-1].append(Tile(ours, text, below, says))
        return rows

    def border(self) -> list[tuple[float, float]]:
        """M = 2 K ln(N / K) in columns and rows, which are powers of two apart."""
        def place(value, marks):  # between the marks on a log scale, beyond them by the last step
            if len(marks) < 2:
                return None
            i = max(0, min(len(marks) - 2, sum(m <= value for m in marks) - 1))
            return i + math.log(value / marks[i]) / math.log(marks[i + 1] / marks[i])

        points = []
        for step in range(241):
            latents = self.latents[0] / 1.6 * (2.56 * self.latents[-1] / self.latents[0])**(step / 240)
            width = line_of(latents, self.k) if latents > self.k else 0
            if width > 0 and len(self.latents) > 1 and len(self.widths) > 1:
                points.append((place(latents, self.latents), place(width, self.widths)))
        return points

    def map(self, title: str, of, known) -> str:
        return map_chart(title, [str(n) for n in self.latents], [str(m) for m in self.widths], self.tiles(of, known),
                         "latents N", "width M", self.border())

    def gap(self, first: str, second: str):
        """Two methods' difference at (M, N)."""
        def of(width, latents):
            a, b = self.found.get((width, latents, first)), self.found.get((width, latents, second))
            return a.mean - b.mean if a and b else None
        return of

    def one(self, method: str):
        return lambda width, latents: (v.mean if (v := self.found.get((width, latents, method))) else None)


def boundary(grid: Grid, compare: bool) -> tuple[str, list[Trace]]:
    """Latent MCC against M over the line."""
    traces = []
    for method in ("dl_fista", "codes", "sae", "mlp32"):
        points = [Point(width / line_of(latents, grid.k), v.mean, v.sd)
                  for (width, latents, m), v in grid.found.items() if m == method and latents > grid.k]
        column = {"sae": 0, "mlp32": 1, "codes": 2}.get(method)
        known = [Point(width / line_of(latents, 3), values[column]) for (width, latents), values in
                 reported.REGIMES.items()] if compare and grid.k == 3 and column is not None else []
        traces.append(Trace(*METHODS[method], sorted(points, key=lambda p: p.x), joined=False, reported=known))
    traces = [t for t in traces if t.points]
    return xy_chart("Latent MCC against M over the line", traces, "M / 2K ln(N/K)", log_x=True, mark_x=(1, "the line"),
                    x_ticks=[0.3, 0.5, 1, 2, 3] if grid.k == 3 else None), traces


def regimes(experiment: Experiment) -> list[Figure]:
    figures = []
    for k in sorted({int(named[3]) for cell in experiment.cells if (named := CELL.fullmatch(cell.group))}):
        grid = Grid(experiment, k)
        if not grid.found:
            continue
        compare = experiment.comparable and k == 3
        known = lambda a, b: lambda m, n: (v[a] - v[b] if compare and (v := reported.REGIMES.get((m, n))) else None)
        none = lambda width, latents: None
        panels = []
        if grid.has("codes", "sae"):
            panels.append(("Sparse coding minus SAE, latent MCC", grid.map(
                "Sparse coding minus SAE", grid.gap("codes", "sae"), known(2, 0)), ""))
        if grid.has("codes", "mlp32"):
            panels.append(("Sparse coding minus MLP 32, latent MCC", grid.map(
                "Sparse coding minus MLP 32", grid.gap("codes", "mlp32"), known(2, 1)), ""))
        if grid.has("dl_fista"):
            panels.append(("DL-FISTA, latent MCC", grid.map("DL-FISTA", grid.one("dl_fista"), none), ""))
        chart, traces = boundary(grid, compare)
        panels.append(("Latent MCC against M over the line", chart, ""))
        figures += figure_of(f"fig5_k{k}", f"Fig 5: regimes, K = {k}", "In the tiles: ours, and what was reported in "
                             "brackets; – was not run. The deeper the colour, the further from 0; the second colour "
                             f"is below 0. {note_of(experiment)}", panels, traces, [("border", "M = 2K ln(N/K)")])
    return figures


GRAMS = ((16, "fig9", "Fig 9: Gram matrices, as many latents as the truth has (16)"),
         (24, "fig10", "Fig 10: Gram matrices, more latents (24 for 16)"),
         (12, "fig11", "Fig 11: Gram matrices, fewer latents (12 for 16)"))

MATRICES = (("softmax_gram", "row-softmax of DᵀD"), ("cosine_gram", "cosines"))


def _square(matrix) -> bool:
    return bool(isinstance(matrix, list) and matrix and all(isinstance(row, list) and len(row) == len(matrix) and all(
        isinstance(v, int | float) for v in row) for row in matrix))


def gram(experiment: Experiment) -> list[Figure]:
    figures = []
    for latents, key, title in GRAMS:
        panels = [[], []]
        for group, name in ((f"codes{latents}", "sparse coding"), (f"sae{latents}", "SAE"),
                            (f"mlp256_{latents}", "MLP 256")):
            numbers = experiment.of(group)[0].numbers if experiment.has(group) else {}
            scores = [(text, experiment.value(group, key)) for text, key in (
                ("latent MCC", "latent_mcc"), ("dictionary MCC", "dictionary_mcc"),
                ("superposition", "superposition_mean"), ("largest |cosine|", "largest_cosine"))]
            scored = [", ".join(f"{text} {value.mean:.2f}" for text, value in part if value)
                      for part in (scores[:2], scores[2:])]
            for row, (matrix, kind) in enumerate(MATRICES):
                if _square(numbers.get(matrix)):
                    chart = matrix_chart(f"{name}: {kind}", numbers[matrix])
                    panels[row].append((f"{name}: {kind}", chart, scored[row]))
        figures += figure_of(key, title, "Columns of the learned dictionary against each other, of the first run, "
                             "without unit length. Full colour is 1, the second colour is below 0; numbers are means "
                             "over the runs.", panels[0] + panels[1])
    return figures
