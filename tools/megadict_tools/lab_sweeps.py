"""Figures over a setting: lambda and k (Fig 6), width of the MLP (Fig 12), biases (Fig 13), k of sparse codes (Fig 15);
and what the seeds have no figure of: resampling, pursuits."""

import re

from . import lab_reported as reported
from .lab_charts import Point, Trace, category_chart, xy_chart
from .lab_figure import Figure, figure_of, note_of
from .lab_results import Experiment
from .lab_rows import rows_chart
from .lab_training import METHODS

LAMBDA = re.compile(r"(\w+)_lambda([-+.\de]+)")


def share_key(method: str) -> str:
    """Codes of gradient sparse coding are never 0."""
    return "l0_1e-4" if method == "codes" else "l0"


def lambda_points(experiment: Experiment, method: str) -> dict[float, dict]:
    found = {}
    for cell in experiment.cells:
        named = LAMBDA.fullmatch(cell.group)
        if named and named[1] == method:
            values = {name: experiment.value(cell.group, key) for name, key in (
                ("mse", "mse"), ("share", share_key(method)), ("mcc", "latent_mcc"), ("l1", "l1"))}
            if None not in values.values():
                found[float(named[2])] = values
    return dict(sorted(found.items()))


def frontier_traces(experiment: Experiment, x: str, y: str) -> list[Trace]:
    """`x`: lambda, share or l1; `y`: mse or mcc."""
    place = {"mse": 0, "share": 1, "mcc": 2}
    traces = []
    for method in ("sae", "mlp32", "codes"):
        ours = lambda_points(experiment, method)
        points = [Point(value if x == "lambda" else v[x].mean, v[y].mean, v[y].sd) for value, v in ours.items()]
        known = reported.FRONTIER[method] if ours and experiment.comparable and x != "l1" else {}
        theirs = [Point(value if x == "lambda" else v[place[x]], v[place[y]]) for value, v in known.items()]
        traces.append(Trace(*METHODS[method], points, marked=True, reported=theirs))
    return [t for t in traces if t.points]


def topk_trace(experiment: Experiment, x: str, y: str) -> Trace:
    points = []
    groups = sorted({c.group for c in experiment.cells if re.fullmatch(r"topk\d+", c.group)}, key=lambda g: int(g[4:]))
    for group in groups:
        at = experiment.value(group, "l0") if x == "share" else None
        value = experiment.value(group, {"mse": "mse", "mcc": "latent_mcc"}[y])
        if value and (at or x == "k"):
            points.append(Point(at.mean if at else int(group[4:]), value.mean, value.sd))
    known = reported.TOPK if x == "k" and points and experiment.comparable else {}
    theirs = [Point(k, v[0 if y == "mse" else 1]) for k, v in known.items()]
    return Trace("TopK", 3, points, marked=True, reported=theirs)


def frontier(experiment: Experiment) -> list[Figure]:
    charts = []
    for title, x, y in (("MSE against L0", "share", "mse"), ("Latent MCC against L0", "share", "mcc"),
                        ("MSE against mean |z|", "l1", "mse"), ("MSE against λ", "lambda", "mse"),
                        ("Latent MCC against λ", "lambda", "mcc"), ("L0 against λ", "lambda", "share")):
        traces = frontier_traces(experiment, x, y)
        if x == "share":
            traces.append(topk_trace(experiment, x, y))
        name = {"share": "share of active codes (L0)", "l1": "mean |z|", "lambda": "λ"}[x]
        charts.append((title, xy_chart(title, traces, name, log_x=x == "lambda", log_y=y == "mse"), ""))
    for title, y in (("TopK: MSE against k", "mse"), ("TopK: latent MCC against k", "mcc")):
        trace = topk_trace(experiment, "k", y)
        charts.append((title, xy_chart(title, [trace], "k (3 are active)", log_y=y == "mse"), ""))
    return figure_of("fig6", "Fig 6: error, active codes and recovery", "L0 is the share of codes above 0; of sparse "
                     f"coding, whose codes never are 0, above 1e-4. {note_of(experiment)}", charts,
                     frontier_traces(experiment, "lambda", "mcc") + [topk_trace(experiment, "k", "mcc")])


def width(experiment: Experiment) -> list[Figure]:
    shapes: dict[str, list[int]] = {}
    for group in dict.fromkeys(cell.group for cell in experiment.cells):
        if named := re.fullmatch(r"(N\d+_M\d+)_h(\d+)", group):
            shapes.setdefault(named[1], []).append(int(named[2]))
    panels, legend = [], []
    for title, key in (("Test loss", "loss"), ("Latent MCC", "latent_mcc"), ("Dictionary MCC", "dictionary_mcc"),
                       ("Share of active codes (L0)", "l0")):
        traces = []
        for i, (shape, hidden) in enumerate(shapes.items()):
            points = [Point(h, v.mean, v.sd) for h in sorted(hidden) if (v := experiment.value(f"{shape}_h{h}", key))]
            k = experiment.data(f"{shape}_h{hidden[0]}").get("k", "?")
            traces.append(Trace(f"{shape.replace('_', ', ').replace('N', 'N ').replace('M', 'M ')}, K {k}", i, points,
                                marked=True))
        legend = legend or traces
        ticks = sorted({h for hidden in shapes.values() for h in hidden})
        chart = xy_chart(title, traces, "hidden width h", log_x=True, log_y=key == "loss", x_ticks=ticks)
        panels.append((title, chart, ""))
    return figure_of("fig12", "Fig 12: width of the MLP encoder", f"No numbers were reported. {note_of(experiment)}",
                     panels, legend)


BIAS_PANELS = (("Latent MCC", "latent_mcc"), ("Test loss", "loss"), ("Share of codes above 1e-4", "l0_1e-4"),
               ("Dictionary MCC", "dictionary_mcc"))  # columns of reported.BIAS


def bias(experiment: Experiment) -> list[Figure]:
    methods = [m for m in (("sae", "SAE"), ("codes", "sparse coding"), ("mlp64", "MLP 64"))
               if experiment.has(f"{m[0]}_bias") or experiment.has(f"{m[0]}_none")]
    panels, legend = [], []
    for column, (title, key) in enumerate(BIAS_PANELS):
        traces = []
        for i, (suffix, name) in enumerate((("bias", "with biases"), ("none", "without"))):
            points = [Point(at, v.mean, v.sd) for at, (method, _) in enumerate(methods)
                      if (v := experiment.value(f"{method}_{suffix}", key))]
            known = [Point(at, values[column]) for at, (method, _) in enumerate(methods) if experiment.comparable
                     and (values := reported.BIAS.get(f"{method}_{suffix}")) and values[column] is not None]
            traces.append(Trace(name, i, points, joined=False, reported=known))
        legend = legend or traces
        panels.append((title, category_chart(title, [name for _, name in methods], traces), ""))
    return figure_of("fig13", "Fig 13: biases", note_of(experiment), panels, legend)


def topk_codes(experiment: Experiment) -> list[Figure]:
    panels, legend = [], []
    compare = experiment.comparable
    numbers = [key for cell in experiment.of("codes") for key in cell.numbers]
    kept = sorted({int(key[1:-4]) for key in numbers if re.fullmatch(r"[ab]\d+_mse", key)})
    for y, (title, key, everything) in enumerate((("MSE", "mse", "mse"), ("Latent MCC", "mcc", "latent_mcc"))):
        traces = []
        for i, (letter, name) in enumerate((("a", "taken at the end"), ("b", "all along"))):
            points = [Point(k, v.mean, v.sd) for k in kept if (v := experiment.value("codes", f"{letter}{k}_{key}"))]
            known = [Point(k, v[2 * i + y]) for k, v in reported.TOPK_CODES.items()] if compare else []
            traces.append(Trace(name, i, points, marked=True, reported=known))
        if value := experiment.value("codes", everything):
            traces.append(Trace("all codes", 2, [Point(0, value.mean)], level=True))
        if compare:
            traces[-1].reported = [Point(10, reported.TOPK_CODES_ALL[y])]
        if compare and key == "mcc":
            traces.append(Trace("SAE, reported", 3, [Point(0, reported.TOPK_CODES_SAE)], level=True))
        legend = traces
        chart = xy_chart(f"{title} against k", traces, "k largest codes", log_y=key == "mse", x_ticks=kept)
        panels.append((f"{title} against k", chart, ""))
    return figure_of("fig15", "Fig 15: the k largest codes", "Of gradient sparse coding: cut at the end, or all along "
                     f"the optimisation. {note_of(experiment)}", panels, legend)


RESAMPLING_PANELS = (("Dead latents of 64 at the end", "dead", False), ("Test MSE", "mse", True),
                     ("Best |correlation| of a true latent", "best_correlation", False))  # of reported.RESAMPLING


def resampling(experiment: Experiment) -> list[Figure]:
    groups = [g for g in (("left", "left alone"), ("resampled", "resampled")) if experiment.has(g[0])]
    panels, legend = [], []
    for column, (title, key, log) in enumerate(RESAMPLING_PANELS):
        points = [Point(at, v.mean, v.sd) for at, (group, _) in enumerate(groups)
                  if (v := experiment.value(group, key))]
        known = [Point(at, reported.RESAMPLING[group][column]) for at, (group, _) in enumerate(groups)]
        traces = [Trace("ours", 0, points, joined=False, reported=known if experiment.comparable else [])]
        legend = legend or traces
        panels.append((title, category_chart(title, [name for _, name in groups], traces, log, zero=key == "dead"), ""))
    return figure_of("resampling", "Dead latents brought back",
                     f"32 of 64 are dead at the start. {note_of(experiment)}", panels, legend)


def pursuits(experiment: Experiment) -> list[Figure]:
    rows = [row for row in experiment.table if row["ours"] is not None and not row["what"].startswith("runs")]
    if not rows:
        return []
    low = min(row["ours"] - (row["sd"] or 0) for row in rows)
    axis = (min(0.84, int(low * 20) / 20), 1.0)
    chart = rows_chart("Latent MCC of pursuits", rows, axis)
    marks = [("spot s0", "ours"), ("band", "band")]
    if any(row["verdict"] == "MISSED" for row in rows):
        marks.insert(1, ("spot s1", "outside its band"))
    return figure_of("pursuits", "Pursuits and the lasso on the true dictionary", f"Latent MCC. {note_of(experiment)}",
                     [("Latent MCC", chart, "")], more=marks)


def bands(experiment: Experiment) -> list[Figure]:
    """For what has no figure of its own: every row that has a band."""
    marks = [("spot s0", "ours, in its band"), ("spot s1", "outside"), ("band", "band")]
    return figure_of("bands", "Ours against the bands", "Each row has a scale of its own, on which its band is the "
                     "middle half, or with one end the half that is allowed.",
                     [("Rows with a band", rows_chart("Ours against the bands", experiment.table), "")], more=marks)
