"""Which figures an experiment of `megadict lab` has. Another one: a row in FIGURES, its function in a file beside."""

from .lab_figure import Figure
from .lab_grids import gram, regimes
from .lab_results import Experiment
from .lab_sweeps import bands, bias, frontier, pursuits, resampling, topk_codes, width
from .lab_training import known_codes, known_dictionary, unknown

# In the order of the page. A function returns [] where the cells hold nothing of what it draws.
FIGURES = {
    "known_codes": known_codes,
    "known_dictionary": known_dictionary,
    "unknown": unknown,
    "pursuits": pursuits,
    "regimes": regimes,
    "frontier": frontier,
    "gram": gram,
    "width": width,
    "bias": bias,
    "topk_codes": topk_codes,
    "resampling": resampling,
}


def figures_of(experiment: Experiment) -> list[Figure]:
    """Its own; or, where it has none or there is nothing in them, its rows against their bands."""
    draw = FIGURES.get(experiment.name)
    return (draw(experiment) if draw else []) or bands(experiment)
