"""What `megadict eval --latents F.h5` says of each latent, and the text around its top rows."""

from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from .errors import BAD_DATA, USAGE, ToolError, one_line
from .shards import LABELS, find_shards

COLUMNS = ("fired", "frequency", "mean", "max", "top_rows", "top_values")
BEFORE, AFTER = 14, 6  # tokens shown around a row


@dataclass
class Context:
    before: str
    token: str
    after: str
    value: float


@dataclass
class Latent:
    index: int
    fired: int
    frequency: float
    mean: float
    largest: float
    nearest: int | None = None
    nearest_cosine: float | None = None
    contexts: list[Context] = field(default_factory=list)


class LatentsFile:
    def __init__(self, path: str):
        try:
            with h5py.File(path, "r") as file:
                self.columns = {name: file[name][:] for name in file}
                attributes = dict(file.attrs)
        except (OSError, KeyError) as error:
            raise ToolError(BAD_DATA, f"cannot read '{path}': {one_line(error)}") from error
        missing = [name for name in COLUMNS if name not in self.columns]
        if missing or "rows" not in attributes:
            raise ToolError(BAD_DATA, f"'{path}' has no '{missing[0] if missing else 'rows'}'",
                            "a file of megadict eval --latents")
        self.path, self.rows = path, int(attributes["rows"])
        self.data = _text(attributes.get("data", ""))

    @property
    def count(self) -> int:
        return len(self.columns["fired"])

    def chosen(self, count: int, top: int) -> list[Latent]:
        """`count` of the latents that fired, spread evenly from the most to the least frequent."""
        fired = self.columns["fired"]
        order = np.argsort(-fired, kind="stable")[:int((fired > 0).sum())]
        places = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))
        return [self._latent(int(order[i])) for i in places] if len(order) else []

    def _latent(self, j: int) -> Latent:
        of = {name: values[j] for name, values in self.columns.items()}
        near = int(of["nearest"]) if "nearest" in of else None
        return Latent(j, int(of["fired"]), float(of["frequency"]), float(of["mean"]),
                      float(of["max"]), near,
                      float(of["nearest_cosine"]) if near is not None else None)

    def add_contexts(self, latents: list[Latent], folder: Path, tokenizer, top: int):
        """Texts of the best rows of each latent, at most one of a window."""
        rows = _EvalRows(folder)
        if rows.count < self.rows:
            raise ToolError(USAGE, f"'{self.path}' speaks of {self.rows:,} rows, '{folder}' holds "
                            f"{rows.count:,}", "--data with the shards that were evaluated")
        for latent in latents:
            seen = set()
            top_rows = self.columns["top_rows"][latent.index].tolist()
            for place, row in enumerate(top_rows):
                if row < 0 or len(latent.contexts) == top:
                    break
                self._check_token(latent.index, place, row, rows, folder)
                window = rows.window(row)
                if window in seen:
                    continue
                seen.add(window)
                value = float(self.columns["top_values"][latent.index][place])
                latent.contexts.append(rows.context(row, window, value, tokenizer))

    def _check_token(self, latent, place, row, rows, folder):
        known = self.columns.get("top_tokens")
        if known is not None and int(known[latent][place]) != rows.tokens[row]:
            raise ToolError(USAGE, f"'{self.path}' was made from other rows than those of '{folder}'",
                            "--data with the shards that were evaluated")


class _EvalRows:
    """Tokens of all rows of a folder; a window is a stretch without a gap in its positions."""

    def __init__(self, folder: Path):
        parts, starts, before = {name: [] for name in LABELS}, [], 0
        for path in find_shards(folder):
            with h5py.File(path, "r") as file:
                for name in LABELS:
                    if name not in file:
                        raise ToolError(BAD_DATA, f"'{path}' has no '{name}': no text to show")
                    parts[name].append(file[name][:].astype(np.int64))
            starts.append(before)
            before += len(parts["tokens"][-1])
        self.tokens, position, document = (np.concatenate(parts[name]) for name in LABELS)
        self.count = before
        cut = np.flatnonzero((np.diff(position) != 1) | (np.diff(document) != 0)) + 1
        self.edges = np.unique(np.concatenate([starts, cut, [before]]))

    def window(self, row: int) -> tuple[int, int]:
        i = int(np.searchsorted(self.edges, row, side="right"))
        return int(self.edges[i - 1]), int(self.edges[i])

    def context(self, row: int, window: tuple[int, int], value: float, tokenizer) -> Context:
        begin, end = max(window[0], row - BEFORE), min(window[1], row + AFTER + 1)
        text = lambda a, b: tokenizer.decode(self.tokens[a:b].tolist(),
                                             clean_up_tokenization_spaces=False)
        cut = "…" if begin > window[0] else ""
        return Context(cut + text(begin, row), text(row, row + 1), text(row + 1, end), value)


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
