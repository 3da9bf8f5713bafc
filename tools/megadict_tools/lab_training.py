"""Figures over the training: known codes (Fig 2), known dictionary (Fig 3), neither (Fig 4)."""

from . import lab_flops as flops
from . import lab_reported as reported
from .lab_charts import Point, Trace, xy_chart
from .lab_figure import Figure, figure_of, note_of
from .lab_results import Experiment

# group -> (name, colour); the same in every figure.
METHODS = {
    "sae": ("SAE", 0), "mlp32": ("MLP 32", 1), "codes": ("sparse coding", 2), "mlp256": ("MLP 256", 3),
    "ito": ("optimised codes", 4), "mlp1024": ("MLP 1024", 5), "dl_fista": ("DL-FISTA", 5), "topk": ("TopK", 6),
    "kmeans": ("one-hot codes", 7),
}


def shape_of(experiment: Experiment, group: str, learns: bool) -> flops.Shape | None:
    data, model = experiment.data(group), experiment.model(group)
    try:
        return flops.Shape(int(data["width"]), int(model["latents"]), int(data["samples"]) // 2,
                           sum(model["hidden"]), learns)
    except (KeyError, TypeError, ValueError):
        return None


def cost_of(experiment: Experiment, group: str, learns: bool):
    """(paper-FLOPs of a step, of the inference that the authors add where the dictionary is known)."""
    shape = shape_of(experiment, group, learns)
    if shape is None or len(experiment.model(group)["hidden"]) > 1:
        return None
    step = flops.coding_step(shape) if group == "codes" else flops.encoder_step(shape)
    return step, 0 if learns else flops.encoder_inference(shape)


def curve_trace(experiment: Experiment, group: str, key: str, known: dict) -> Trace:
    """Over the steps; `known`: group -> [(step, value, sd)] that are reported."""
    curve = experiment.curve(group, key)
    points = [Point(*p) for p in zip(curve.steps, curve.mean, curve.sd)] if curve else []
    name, index = METHODS[group]
    return Trace(name, index, points, reported=[Point(*p) for p in known.get(group, [])])


def over_flops(experiment: Experiment, group: str, trace: Trace, learns: bool, inference: bool) -> Trace:
    """The same against paper-FLOPs: step t is charged t + 1 steps, as the authors do."""
    cost = cost_of(experiment, group, learns)
    if cost is None:
        return Trace(trace.name, trace.index)
    at = lambda step: (step + 1) * cost[0] + (cost[1] if inference else 0)
    move = lambda points: [Point(at(p.x), p.y, p.sd) for p in points]
    return Trace(trace.name, trace.index, move(trace.points), reported=move(trace.reported))


def final(experiment: Experiment, group: str, key: str, step: float, known: dict) -> Trace:
    """One number at the end of the training."""
    value = experiment.value(group, key)
    name, index = METHODS[group]
    points = [Point(step, value.mean, value.sd)] if value else []
    return Trace(name, index, points, joined=False, reported=[Point(*p) for p in known.get(group, [])])


def known_codes(experiment: Experiment) -> list[Figure]:
    known = {g: [(20000, *v)] for g, v in reported.KNOWN_CODES.items()} if experiment.comparable else {}
    groups = [g for g in ("sae", "mlp32", "mlp256", "mlp1024") if experiment.has(g)]
    traces = [curve_trace(experiment, g, "score", known) for g in groups]
    cost = [over_flops(experiment, g, t, False, False) for g, t in zip(groups, traces)]
    crossing = (reported.KNOWN_CODES_CROSSING, "reported crossing") if experiment.comparable else None
    panels = [("Score against steps", xy_chart("Score against steps", traces, "steps", floor=0.6),
               "Those below 0.6 are left out."),
              ("Score against paper-FLOPs", xy_chart("Score against FLOPs", cost, "FLOPs as the paper counts them",
                                                     log_x=True, mark_x=crossing, floor=0), "")]
    return figure_of("fig2", "Fig 2: known codes", "Mean correlation of each latent's codes with the true ones, same "
                     f"index, test half. {note_of(experiment)}", panels, traces)


def known_dictionary(experiment: Experiment) -> list[Figure]:
    known = reported.KNOWN_DICTIONARY if experiment.comparable else {}
    groups = [g for g in ("sae", "mlp32", "mlp256") if experiment.has(g)]
    traces = [curve_trace(experiment, g, "latent_mcc", known) for g in groups]
    cost = [over_flops(experiment, g, t, False, True) for g, t in zip(groups, traces)]
    iterations = experiment.model("ito").get("code_steps", 20000)
    codes = final(experiment, "ito", "latent_mcc", iterations, known)
    shape = shape_of(experiment, "ito", False)
    price = lambda points: [Point(flops.ito(shape, int(p.x)), p.y, p.sd) for p in points]
    paid = [Trace(codes.name, codes.index, price(codes.points), False, reported=price(codes.reported))] if shape else []
    traces.append(codes)
    panels = [("Latent MCC against steps", xy_chart("Latent MCC against steps", traces, "steps"), ""),
              ("Latent MCC against paper-FLOPs", xy_chart("Latent MCC against FLOPs", cost + paid,
               "FLOPs as the paper counts them", log_x=True), "Training and inference.")]
    return figure_of("fig3", "Fig 3: known dictionary", "The dictionary is the true one and stays; encoders learn its "
                     f"codes, or they are optimised. {note_of(experiment)}", panels, traces)


def unknown(experiment: Experiment) -> list[Figure]:
    latent = reported.UNKNOWN_LATENT if experiment.comparable else {}
    dictionary = reported.UNKNOWN_DICTIONARY if experiment.comparable else {}
    groups = [g for g in ("sae", "mlp32", "mlp256", "codes", "topk") if experiment.has(g)]
    # Their curves: an SAE's, whose dictionary they take, or none.
    singles = [g for g in ("dl_fista", "kmeans") if experiment.has(g)]
    levels = lambda key: [Trace(*METHODS[g], [Point(0, v.mean)], level=True) for g in singles
                          if (v := experiment.value(g, key))]
    end = experiment.model("ito").get("steps", 40000)
    latents = [curve_trace(experiment, g, "latent_mcc", latent) for g in groups]
    codes = [final(experiment, "ito", "latent_mcc", end, latent)]
    atoms = [curve_trace(experiment, g, "dictionary_mcc", dictionary) for g in groups]
    priced = [over_flops(experiment, g, t, True, False) for g, t in zip(groups, latents) if g != "topk"]
    priced_atoms = [over_flops(experiment, g, t, True, False) for g, t in zip(groups, atoms) if g != "topk"]
    steps, cost = "steps", "FLOPs as the paper counts them"
    charts = (("Latent MCC", latents + codes + levels("latent_mcc"), steps),
              ("Dictionary MCC", atoms + levels("dictionary_mcc"), steps),
              ("Latent MCC", priced, cost), ("Dictionary MCC", priced_atoms, cost))
    panels = [(f"{name} against {'steps' if x == steps else 'paper-FLOPs'}",
               xy_chart(f"{name} against {x}", traces, x, log_x=x == cost, floor=0.2), "")
              for name, traces, x in charts]
    return figure_of("fig4", "Fig 4: neither codes nor dictionary known", "Curves of sparse coding are of its training "
                     "codes, all others of the test half; optimised codes use the SAE's dictionary. "
                     f"{note_of(experiment)}", panels, latents + codes + levels("latent_mcc"))
