"""The held-out rows of a harvest as the windows of tokens that they came from.

The shards say which token each row belongs to. Rows that the harvest left out (--drop_first,
--max_norm_multiple) leave gaps, whose tokens come from the text once more.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from .errors import BAD_DATA, USAGE, ToolError, one_line
from .harvest_plan import STATE_FILE, Settings, plan_units
from .models import HOOK_NAMES, Source, Target, fingerprint
from .shards import LABELS, as_float32, find_shards
from .text import PythonTopics, TextFiles, held_out_of


@dataclass(frozen=True)
class EvalWindow:
    """`tokens` that the model sees together; `kept[i]` where a shard holds position i's row."""

    tokens: np.ndarray
    kept: np.ndarray
    shard: Path
    first_row: int

    @property
    def rows(self) -> int:
        return int(self.kept.sum())

    def activations(self) -> np.ndarray:
        with h5py.File(self.shard, "r") as file:
            data = file["activations"]
            return as_float32(data[self.first_row:self.first_row + self.rows],
                              data.attrs.get("dtype"))


@dataclass
class _Run:
    """Rows of a shard whose positions rise within one document: what is left of one window."""

    shard: Path
    first_row: int
    tokens: np.ndarray
    position: np.ndarray
    document: int

    def whole(self) -> bool:
        return bool((self.position == np.arange(len(self.position))).all())

    def in_window(self, tokens) -> EvalWindow:
        tokens = np.asarray(tokens, np.int64)
        kept = np.zeros(len(tokens), bool)
        if self.position[-1] >= len(tokens) or (tokens[self.position] != self.tokens).any():
            raise ToolError(BAD_DATA, f"'{self.shard}' row {self.first_row}: its tokens are not "
                            "those of the text", "the text and model of the harvest")
        kept[self.position] = True
        return EvalWindow(tokens, kept, self.shard, self.first_row)


def _runs(path: Path) -> list[_Run]:
    with h5py.File(path, "r") as file:
        missing = [name for name in LABELS if name not in file]
        if missing:
            raise ToolError(BAD_DATA, f"'{path}' has no '{missing[0]}': without tokens nothing can "
                            "be spliced into a language model", "shards that tools/harvest.py wrote")
        tokens, position, document = (file[name][:].astype(np.int64) for name in LABELS)
    begins = np.flatnonzero((np.diff(position) <= 0) | (np.diff(document) != 0)) + 1
    edges = [0, *begins.tolist(), len(tokens)]
    return [_Run(path, a, tokens[a:b], position[a:b], int(document[a]))
            for a, b in zip(edges, edges[1:])]


def read_target(path: Path) -> Target:
    """The site that a shard says it was taken from."""
    with h5py.File(path, "r") as file:
        hook, layer = str(file.attrs.get("hook", "")), int(file.attrs.get("layer", -1))
    for site, template in HOOK_NAMES.items():
        if hook == template.format(layer):
            return Target(site, layer)
    raise ToolError(BAD_DATA, f"'{path}': hook '{hook}' of layer {layer} is no site that is known",
                    "shards that tools/harvest.py wrote")


def _harvest_settings(folder: Path) -> Settings | None:
    for place in (folder, folder.parent, folder.parent.parent):
        if (place / STATE_FILE).is_file():
            try:
                return Settings(**json.loads((place / STATE_FILE).read_text())["settings"])
            except (ValueError, KeyError, TypeError) as error:
                raise ToolError(BAD_DATA, f"'{place / STATE_FILE}' is no state of a harvest: "
                                f"{one_line(error)}") from error
    return None


def _text(settings: Settings, files: list[str], separator: str):
    if not files and settings.text != PythonTopics.name:
        raise ToolError(USAGE, f"the harvest left rows out, so that their tokens must come from its "
                        f"text: give --text ({settings.text})")
    text = TextFiles(files, separator) if files else PythonTopics()
    if text.fingerprint() != settings.text_fingerprint:
        raise ToolError(USAGE, f"--text '{text.name}' is not the text of the harvest "
                        f"('{settings.text}')", "the same files in the same order, and its --separator")
    return text


def _planned(runs: list[_Run], settings: Settings, text, tokenizer) -> list[EvalWindow]:
    """Each run beside the window of the harvest's plan that it is left of."""
    bos = tokenizer.bos_token_id if settings.prepend_bos else None
    held_out = held_out_of(text, settings.eval_fraction, settings.seed)
    units = plan_units(settings, text, held_out, tokenizer, bos)
    windows = (w for unit in units if unit.split == "eval" for w in unit.windows)
    found, window = [], next(windows, None)
    for run in runs:
        while window and not _fits(run, window):
            window = next(windows, None)  # all its rows were left out
        if window is None:
            raise ToolError(BAD_DATA, f"'{run.shard}' row {run.first_row} is not where the harvest "
                            "put it", "shards in the order in which tools/harvest.py wrote them")
        found.append(run.in_window(window.tokens))
        window = next(windows, None)
    return found


def _fits(run: _Run, window) -> bool:
    return (window.document == run.document and run.position[-1] < len(window.tokens)
            and (np.array(window.tokens)[run.position] == run.tokens).all())


def read_windows(folder: Path, source: Source, make_tokenizer, text_files: list[str],
                 separator: str) -> list[EvalWindow]:
    """All windows of the held-out shards, in their order."""
    runs = [run for path in find_shards(folder) for run in _runs(path)]
    if all(run.whole() for run in runs):
        return [run.in_window(run.tokens) for run in runs]
    settings = _harvest_settings(folder)
    if settings is None:
        raise ToolError(BAD_DATA, f"'{folder}' holds rows of parts of windows, and there is no "
                        f"{STATE_FILE} that says of which", "shards as tools/harvest.py wrote them, "
                        "not shuffled")
    if settings.model_fingerprint != fingerprint(source):
        raise ToolError(USAGE, f"--model '{source.name}' is not the model of the harvest "
                        f"('{settings.model}')")
    return _planned(runs, settings, _text(settings, text_files, separator), make_tokenizer())
