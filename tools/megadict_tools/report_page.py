"""The sections of the HTML report: what tools/report.py puts on its page."""

import math
from html import escape
from pathlib import Path

from .charts import SERIES, Series, bar_chart, line_chart, scatter_chart, short
from .latents_file import Latent
from .run_folder import Run

POINTS = 240  # of a curve; more are averaged

# title, what stands below it, name on training rows, name on held-out rows, log axis, from zero,
# shown only where it says something
CURVES = (
    ("Unexplained variance (FVU)", "0 is perfect, 1 is no better than the mean row. Log scale.",
     "fvu", "eval/fvu", True, False, None),
    ("Dead latents, %", "Not fired within <code>dead.window_tokens</code>, unknown before. Dots: on no held-out row.",
     "dead_pct", "eval/dead_pct", False, True, None),
    ("Active latents per row (L0)", "", "l0", "eval/l0", False, True, "varies"),
    ("AuxK loss", "What dead latents are trained on. Log scale.",
     "losses/auxiliary_reconstruction_loss", None, True, False, "positive"),
    ("L1 loss", "", "losses/l1_loss", None, False, True, "positive"),
    ("Learning rate", "", "lr", None, False, True, None),
    ("Gradient norm", "Log scale.", "grad_norm", None, True, False, "positive"),
    ("Speed, tokens per second", "The reading of rows and evaluations included.",
     "tokens_per_s", None, False, True, None),
)


def number(value, digits: int = 4) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def percent(value) -> str:
    return "–" if value is None else f"{value:.1f} %"


def swatch(i: int) -> str:
    return f'<span class="swatch s{i % SERIES}"></span>'


def table(caption: str, head: list[str], rows: list[list[str]], words: int = 0,
          kind: str = "") -> str:
    """`head` and cells are HTML; the first column names the row, `words` more are text."""
    text = lambda i: ' class="words"' if 0 < i <= words else ""
    heads = "".join(f'<th scope="col"{text(i)}>{h}</th>' for i, h in enumerate(head))
    body = "".join("<tr>" + f'<th scope="row">{row[0]}</th>' + "".join(
        f"<td{text(i)}>{cell}</td>" for i, cell in enumerate(row[1:], 1)) + "</tr>" for row in rows)
    says = f'<span class="says">{caption}</span>'
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(_plain(caption))}">'
            f'<table class="{kind}"><caption>{says}</caption><thead><tr>{heads}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>")


def _plain(html: str) -> str:
    return html.replace("<code>", "").replace("</code>", "")


def figure(title: str, chart: str, caption: str = "") -> str:
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure><h3>{title}</h3>{below}{chart}</figure>"


# ---- head ----------------------------------------------------------------------------------------

def quality(run: Run, name: str):
    """Of the last evaluation."""
    return run.evaluation.get(name)


def median_speed(run: Run):
    rates = sorted(v for _, v in run.curve("tokens_per_s") if math.isfinite(v))
    return rates[len(rates) // 2] if rates else None


def facts(run: Run, loss: dict | None) -> str:
    """The numbers of one run."""
    rows = quality(run, "rows")
    on = f"on {rows:,} held-out rows" if rows else "not evaluated yet"
    cells = [
        ("Unexplained (FVU)", number(quality(run, "fvu")), on),
        ("Active latents per row", number(quality(run, "l0") or run.last("l0"), 1),
         f"of {run.value('model.n_latents', 0):,}"),
        ("Latents that never fire", percent(quality(run, "dead_pct")), on),
        ("Tokens trained on", short(run.last("tokens") or 0), f"{run.last('step'):,} steps"),
        ("Tokens per second", f"{median_speed(run) or 0:,.0f}", "median while training")]
    if loss:
        mean = loss["ce_loss_score_mean"]
        cells.insert(1, ("Loss recovered", number(loss["ce_loss_score"], 3),
                         f"{number(mean, 3)} against the mean row"))
    return '<dl class="facts">' + "".join(
        f"<div><dt>{a}</dt><dd>{b}<small>{c}</small></dd></div>" for a, b, c in cells) + "</dl>"


def runs_table(runs: list[Run]) -> str:
    known = [quality(r, "fvu") for r in runs if quality(r, "fvu") is not None]
    rows = []
    for i, run in enumerate(runs):
        fvu = quality(run, "fvu")
        best = fvu is not None and fvu == min(known)
        rows.append([
            swatch(i) + escape(run.name),
            f'<span class="best">{number(fvu)}</span>' if best else number(fvu),
            number(quality(run, "l0") or run.last("l0"), 1), percent(quality(run, "dead_pct")),
            f"{run.value('model.n_latents', 0):,}", short(run.last("tokens") or 0),
            f"{median_speed(run) or 0:,.0f}", escape(str(run.value("model.activation", "–")))])
    return table("Quality is of the last evaluation on held-out rows; ▸ marks the lowest FVU.",
                 ["Run", "FVU", "L0", "Never fire", "Latents", "Tokens", "Tokens/s", "Activation"],
                 rows, kind="runs")


def legend(runs: list[Run]) -> str:
    if len(runs) == 1:
        return ""
    items = "".join(f'<li class="s{i % SERIES}{" again" if i >= SERIES else ""}">'
                    f"{escape(run.name)}</li>" for i, run in enumerate(runs))
    return f'<ul class="legend">{items}</ul>'


# ---- charts --------------------------------------------------------------------------------------

def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS points, each the mean of as many neighbours; NaN where none is finite."""
    per = -(-len(points) // POINTS)
    result = []
    for i in range(0, len(points), per or 1):
        group = points[i:i + per]
        values = [v for _, v in group if math.isfinite(v)]
        result.append((group[-1][0], sum(values) / len(values) if values else math.nan))
    return result


def _worth_showing(series: list[Series], condition: str | None) -> bool:
    values = [v for s in series for _, v in s.points if math.isfinite(v)]
    if condition == "positive":
        return any(v > 0 for v in values)
    return bool(values) and (condition != "varies" or max(values) - min(values) > 0.02 * max(values))


def curves(runs: list[Run]) -> str:
    figures = []
    for title, caption, train, held, log, zero, condition in CURVES:
        series = []
        for i, run in enumerate(runs):
            if points := thinned(run.curve(train)):
                series.append(Series(f"{run.name}, training", points, i))
            if held and (points := run.curve(held)):
                series.append(Series(f"{run.name}, held-out", points, i, dots=True))
        if _worth_showing(series, condition):
            figures.append(figure(title, line_chart(title, series, "tokens", log, zero), caption))
    dots = any(name.startswith("eval/") for run in runs for line in run.lines for name in line)
    note = "<p class=\"under\">Lines: training batches" + (
        "; dots: held-out rows" if dots else "") + ".</p>"
    return f'{legend(runs)}{note}<div class="charts">{"".join(figures)}</div>'


def densities(runs: list[Run]) -> str:
    figures = []
    for i, run in enumerate(runs):
        density = quality(run, "feature_density")
        if not density:
            continue
        rows, width, low = quality(run, "rows"), density["width"], density["log10_from"]
        first = max(0, math.floor((math.log10(1 / rows) - low) / width))
        counts = density["counts"][first:]
        edges = [low + width * (first + j) for j in range(len(counts) + 1)]
        names = [f"{c} latents fire on 1e{a:g} to 1e{b:g} of the rows"
                 for c, a, b in zip(counts, edges, edges[1:])]
        silent = sum(density["counts"][:first])
        figures.append(figure(
            escape(run.name) if len(runs) > 1 else "Latents by how often they fire",
            bar_chart(f"Density of the latents of {run.name}", edges, counts,
                      "log₁₀ of the share of rows", i, names),
            f"{silent:,} more never fire on the {rows:,} held-out rows."))
    if len(runs) == 1 and figures:
        figures.append(metrics_figure(runs[0]))
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def metrics_figure(run: Run) -> str:
    """Every number of the evaluation, by its name in eval.json."""
    items = "".join(f"<div><dt><code>{escape(name)}</code></dt><dd>{value:,.5g}</dd></div>"
                    for name, value in run.evaluation.items()
                    if isinstance(value, (int, float)) and name not in ("rows", "step", "tokens"))
    return ('<figure class="wide"><h3>All held-out metrics</h3><figcaption>Their definitions: '
            f'<code>megadict eval</code>.</figcaption><dl class="metrics">{items}</dl></figure>')


def cost_axis(runs: list[Run]):
    """(name, function of a run) of what the runs differ in: L0, or else latents, or else tokens."""
    for name, of in (("active latents per row (L0)", lambda r: quality(r, "l0")),
                     ("latents", lambda r: r.value("model.n_latents")),
                     ("tokens trained on", lambda r: quality(r, "tokens"))):
        values = [of(r) for r in runs]
        if len(runs) > 1 and None not in values and max(values) > 1.01 * min(values) > 0:
            return name, of
    return None


def frontier(runs: list[Run]) -> str:
    judged = [r for r in runs if quality(r, "fvu") is not None]
    axis = cost_axis(judged)
    if axis is None:
        return ""
    name, cost = axis
    values = [cost(r) for r in judged]
    log = max(values) > 3 * min(values)
    figures = []
    for title, of, zero in (("Held-out FVU", lambda r: quality(r, "fvu"), False),
                            ("Latents that never fire, %", lambda r: quality(r, "dead_pct"), True),
                            ("Tokens per second, median", median_speed, True)):
        points = [(cost(r), of(r), r.name) if r in judged and of(r) is not None else None
                  for r in runs]
        if any(points):
            figures.append(figure(title, scatter_chart(f"{title} by {name}", points, name, log, zero)))
    return f'<div class="charts">{"".join(figures)}</div>'


# ---- loss recovered ------------------------------------------------------------------------------

def loss_section(results: list[dict]) -> str:
    parts = []
    for one in results:
        rows = [["The model as it is", number(one["ce_clean"]), number(0.0), *["–"] * 4],
                ["Zeros in its place", number(one["ce_zero"]), number(one["kl_zero"]), *["–"] * 4],
                ["The mean row", number(one["ce_mean"]), number(one["kl_mean"]), *["–"] * 4]]
        for d in one["dictionaries"]:
            rows.append([escape(Path(d["dictionary"]).name), *(number(d[name]) for name in (
                "ce", "kl", "ce_loss_score", "ce_loss_score_mean", "kl_div_score",
                "kl_div_score_mean"))])
        says = (f"{escape(one['model'])}, <code>{escape(one['hook'])}</code>, {one['tokens']:,} "
                "held-out tokens. CE and KL in nats per token.")
        parts.append(table(says, ["Activations replaced by", "CE", "KL", "CE score",
                                  "against the mean", "KL score", "against the mean"], rows))
    return "".join(parts)


# ---- latents -------------------------------------------------------------------------------------

def _sortable(name: str, value: float, text: str) -> str:
    return f'<td role="cell" data-name="{name}" data-value="{value!r}">{text}</td>'


def _contexts(latent: Latent) -> str:
    items = "".join(
        f'<li><span class="value">{c.value:.3g}</span><span class="text">'
        f"{_visible(c.before)}{_marked(c.token)}{_visible(c.after)}</span></li>"
        for c in latent.contexts)
    return f'<ol class="contexts">{items}</ol>'


def _visible(text: str) -> str:
    return escape(text.replace("\n", "↵"))


def _marked(token: str) -> str:
    """The token, its leading space before the mark; white space alone is drawn."""
    if not token.strip(" "):
        return f"<mark>{'␣' * len(token) or '∅'}</mark>"
    word = token.lstrip(" ")
    return f"{' ' * (len(token) - len(word))}<mark>{_visible(word)}</mark>"


def latents_table(latents: list[Latent], name: str, number_of: int, count: int, rows: int) -> str:
    """A table that a script makes sortable; on a phone each latent is a block."""
    texts, near = any(l.contexts for l in latents), any(l.nearest is not None for l in latents)
    heads = ["Latent", "Fires on", "Mean", "Max", *(["Nearest, cosine"] if near else []),
             *(["Strongest on"] if texts else [])]
    head = "".join(
        f'<th role="columnheader" scope="col"{"" if h == "Strongest on" else " data-sort=1"}'
        f'{" class=words" if h == "Strongest on" else ""}>{h}</th>' for h in heads)
    body = []
    for l in latents:
        cells = [_sortable("Fires on", l.frequency, f"{100 * l.frequency:.3g} %"),
                 _sortable("Mean", l.mean, f"{l.mean:.3g}"), _sortable("Max", l.largest,
                                                                       f"{l.largest:.3g}")]
        if near:
            cells.append(_sortable("Nearest", l.nearest_cosine, f"{l.nearest} ({l.nearest_cosine:.2f})"))
        if texts:
            cells.append(f'<td role="cell" class="words">{_contexts(l)}</td>')
        body.append(f'<tr role="row"><th role="rowheader" scope="row" data-value="{l.index}">'
                    f'<span class="soft">#</span>{l.index}</th>{"".join(cells)}</tr>')
    key = f"latents-{number_of}"
    return (
        f'<div class="tools" data-for="{key}" hidden><label>Search <input type="search" '
        'placeholder="a word, a number"></label><output class="soft" aria-live="polite"></output>'
        f'</div><div class="scroll" tabindex="0" role="region" aria-label="Latents of {escape(name)}">'
        f'<table class="latents" id="{key}" role="table"><caption>{len(latents)} of {count:,} '
        f"latents, spread evenly from the most to the least frequent, on {rows:,} held-out rows."
        f'</caption><thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(body)}</tbody></table></div>')


# ---- configuration -------------------------------------------------------------------------------

def value_text(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value == "" else f"{value:g}" if isinstance(value, float) else str(value)


def config_section(runs: list[Run]) -> str:
    parts = [differences(runs)] if len(runs) > 1 else []
    for run in runs:
        chosen = {name: f for name, f in run.config.items() if _given(f)}
        if len(runs) == 1:
            parts.append(fields_table("Fields that were given.", chosen))
        command = " ".join(run.environment.get("command", []))
        says = f'<p class="mono">megadict train {escape(command)}</p>' if command else ""
        machine = ", ".join(str(run.environment[name]) for name in ("processor", "gpus", "compiler")
                            if run.environment.get(name))
        where = f'<p class="under">{escape(machine)}</p>' if machine else ""
        grid = fields_table("As resolved; what was given is bold.", run.config)
        parts.append(f"<details><summary>All {len(run.config)} fields of {escape(run.name)}</summary>"
                     f"{says}{where}{grid}</details>")
    return "".join(parts)


def fields_table(caption: str, config: dict) -> str:
    rows = [[f"<code>{escape(name)}</code>",
             f'<code{" class=given" if _given(f) else ""}>{escape(value_text(f.get("value")))}</code>',
             escape(str(f.get("source", "")))] for name, f in config.items()]
    return table(caption, ["Field", "Value", "From"], rows, words=2, kind="config")


def _given(field: dict) -> bool:
    return field.get("source") not in ("default", "resolved")


def differences(runs: list[Run]) -> str:
    names = dict.fromkeys(name for run in runs for name in run.config)
    texts = {name: [value_text(run.value(name, "–")) for run in runs] for name in names}
    rows = [[f"<code>{escape(name)}</code>", *(f"<code>{escape(v)}</code>" for v in values)]
            for name, values in texts.items() if len(set(values)) > 1 and name != "run.dir"]
    if not rows:
        return "<p>The runs have the same configuration.</p>"
    return table("Fields in which the runs differ.",
                 ["Field", *(swatch(i) + escape(r.name) for i, r in enumerate(runs))], rows,
                 words=len(runs), kind="config")
