"""The harvest itself: windows through the model, rows into shards."""

import time
from dataclasses import dataclass, replace
from itertools import islice

import h5py
import numpy as np
import torch

from .errors import BAD_DATA, ToolError
from .harvest_plan import SPLITS, OutputFolder, Settings, Unit, plan_units
from .models import ActivationTap, Source, Target, load_model
from .progress import Progress
from .shards import ShardWriter, stored
from .text import Window

SORTED_BATCHES = 4     # batches whose windows are sorted by length together, to save padding
CALIBRATION_ROWS = 4096


@dataclass
class Probe:
    """What the first batches show: widths of the targets, speed."""

    widths: dict[Target, int]
    rows_per_s: float


class Harvester:
    def __init__(self, settings: Settings, source: Source, text, held_out, tokenizer,
                 bos: int | None, targets: list[Target], out: OutputFolder, device: str):
        self.settings, self.targets, self.out, self.device = settings, targets, out, device
        self.source = source
        self.units = lambda: plan_units(settings, text, held_out, tokenizer, bos)
        whole = replace(settings, slice="")
        self.units_of_all = lambda: plan_units(whole, text, held_out, tokenizer, bos)
        dtype = torch.bfloat16 if settings.compute == "bfloat16" else torch.float32
        self.model = load_model(source, dtype, device)
        self.vocabulary = self.model.get_input_embeddings().weight.shape[0]
        self.tap = ActivationTap(self.model, targets)

    def rows_done(self) -> int:
        """Rows of shards that are there, before the norm filter; for the estimate only."""
        folder, names, done = self.out.folders[self.targets[0]], self.out.prefix + "shard_*.h5", 0
        for path in [*folder.glob(names), *folder.glob("eval/" + names)]:
            with h5py.File(path, "r") as file:
                done += int(file.attrs["rows"]) + int(file.attrs["dropped_rows"])
        return done

    def probe(self) -> Probe:
        """Runs the first batches: twice the first one for the speed; with the norm filter on, the
        first rows of the first training shard for the median, unless an earlier run stored it.
        Those rows are fixed by the plan, for all slices the unsliced one's, so that the median is
        the same whenever and wherever it is taken."""
        first = next((u for u in self.units() if u.split == "train"), None)
        if first is None:
            raise ToolError(BAD_DATA, f"the text{self._slice_words()} has no training rows",
                            "more documents" + (", or fewer slices" if self.settings.slice else ""))
        windows = first.windows[:self.settings.batch]
        taken = self._activations(windows)
        start = time.monotonic()
        self._activations(windows)
        rows_per_s = len(next(iter(taken.values()))) / (time.monotonic() - start)
        if not self.out.state.get("begun"):
            self.out.state["median_norm"] = self._median_norms()
            self.out.state["begun"] = True
            self.out.save()
        return Probe({t: taken[t].shape[1] for t in self.targets}, rows_per_s)

    def _slice_words(self) -> str:
        return f" of slice {self.settings.slice}" if self.settings.slice else ""

    def _median_norms(self) -> dict[str, float]:
        if not self.settings.max_norm_multiple:
            return {}
        unit = next(u for u in self.units_of_all() if u.split == "train")
        norms = {target: [] for target in self.targets}
        rows = 0
        for group in self._groups(unit.windows):
            for target, data in self._activations(group).items():
                norms[target].append(stored(data, self.settings.dtype)[1])
            rows += sum(self.settings.rows_of(w) for w in group)
            if rows >= CALIBRATION_ROWS:
                break
        return {t.name: float(np.median(np.concatenate(norms[t])[:CALIBRATION_ROWS]))
                for t in self.targets}

    def run(self, expected_rows: int, quiet: bool = False):
        """Makes every shard that is not there yet, then marks the folder complete."""
        progress = Progress("harvest", expected_rows, quiet=quiet)
        rows = dict.fromkeys(SPLITS, 0)
        dropped = {t.name: 0 for t in self.targets}
        for unit in self.units():
            if self.out.has(unit):
                progress.skip(unit.rows)
            else:
                self._make(unit, progress)
            for target in self.targets:
                with h5py.File(self.out.shard(target, unit), "r") as file:
                    dropped[target.name] += int(file.attrs["dropped_rows"])
                    if target == self.targets[0]:
                        rows[unit.split] += int(file.attrs["rows"])
        progress.close()
        self.out.state.update(complete=True, rows=rows, dropped=dropped)
        self.out.save()

    def _groups(self, windows: tuple[Window, ...]):
        size = self.settings.batch * SORTED_BATCHES
        for start in range(0, len(windows), size):
            yield windows[start:start + size]

    def _make(self, unit: Unit, progress: Progress):
        writers = {}
        for group in self._groups(unit.windows):
            taken = self._activations(group)
            labels = self._labels(group)
            for target, data in taken.items():
                if target not in writers:
                    writers[target] = self._writer(target, unit, data.shape[1])
                keep = self._short_enough(target, data)
                writers[target].append(data[torch.from_numpy(keep)],
                                       {name: part[keep] for name, part in labels.items()})
            progress.advance(sum(self.settings.rows_of(w) for w in group),
                             f"{unit.split} {unit.file_name}")
        for writer in writers.values():
            writer.file.attrs["dropped_rows"] = unit.rows - writer.rows
            writer.close()

    def _writer(self, target: Target, unit: Unit, width: int) -> ShardWriter:
        return ShardWriter(self.out.shard(target, unit), width, self.settings.dtype, unit.rows, {
            "model": self.source.name, "hook": target.hook, "layer": target.layer,
            "tokenizer": self.source.name})

    def _short_enough(self, target: Target, data: torch.Tensor) -> np.ndarray:
        if not self.settings.max_norm_multiple:
            return np.ones(len(data), dtype=bool)
        limit = self.settings.max_norm_multiple * self.out.state["median_norm"][target.name]
        return stored(data, self.settings.dtype)[1] <= limit

    def _labels(self, windows) -> dict[str, np.ndarray]:
        first = int(self.settings.drop_first)
        parts = [(w.tokens[first:], range(first, len(w.tokens)), w.document) for w in windows]
        counts = [len(tokens) for tokens, _, _ in parts]
        return {
            "tokens": np.fromiter((t for tokens, _, _ in parts for t in tokens), np.uint32),
            "position": np.fromiter((p for _, span, _ in parts for p in span), np.uint32),
            "document": np.repeat(np.array([d for _, _, d in parts], np.uint32), counts),
        }

    def _activations(self, windows) -> dict[Target, torch.Tensor]:
        """float32 rows [rows, width] of every target, in the order of the windows. Windows of
        like length share a forward pass."""
        rows_of = self.settings.rows_of
        offsets = np.cumsum([0, *(rows_of(w) for w in windows)])
        order = iter(sorted(range(len(windows)), key=lambda i: -len(windows[i].tokens)))
        result: dict[Target, torch.Tensor] = {}
        while batch := list(islice(order, self.settings.batch)):
            taken = self.tap(self._input_ids([windows[i] for i in batch]))
            for target, values in taken.items():
                values = values.float().cpu()
                if target not in result:
                    result[target] = torch.empty(int(offsets[-1]), values.shape[-1])
                for row, i in enumerate(batch):
                    length = len(windows[i].tokens)
                    result[target][offsets[i]:offsets[i + 1]] = values[row, length - rows_of(
                        windows[i]):length]
        return {target: result[target] for target in self.targets}

    def _input_ids(self, windows: list[Window]) -> torch.Tensor:
        longest = max(len(w.tokens) for w in windows)
        ids = torch.zeros(len(windows), longest, dtype=torch.long)
        for row, window in enumerate(windows):
            ids[row, :len(window.tokens)] = torch.tensor(window.tokens)
        if int(ids.max()) >= self.vocabulary:
            raise ToolError(BAD_DATA, f"token {int(ids.max())} is beyond the model's vocabulary of "
                            f"{self.vocabulary}", "the tokenizer belongs to another model")
        return ids.to(self.device)
