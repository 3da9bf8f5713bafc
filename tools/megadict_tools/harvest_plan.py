"""What a harvest will write, fixed before it starts, and what of it is already there.

The plan is a pure function of the settings and the text: which windows of tokens make up which
shard. A shard is final once its file has its own name; a resumed harvest walks the same plan,
leaves final shards alone and makes the others anew, so that no row is lost or doubled.
"""

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Iterator

from .errors import ERROR, USAGE, ToolError
from .models import Target
from .text import HeldOut, TextSource, Window, document_tokens, windows_of

STATE_FILE = "harvest.json"
SPLITS = ("train", "eval")


@dataclass(frozen=True)
class Settings:
    """Everything that decides which bytes are written. Threads and device are not among it."""

    model: str
    model_fingerprint: str
    text: str
    text_fingerprint: str
    targets: tuple[str, ...]
    rows: int  # 0 = the whole text
    context: int
    batch: int
    dtype: str
    compute: str
    eval_fraction: float
    drop_first: bool
    prepend_bos: bool
    max_norm_multiple: float  # 0 = off
    shard_rows: int
    seed: int
    slice: str = ""  # "I/N": every N-th document from I; "" = all of them

    @property
    def part(self) -> tuple[int, int]:
        """I and N of the slice."""
        index, _, parts = self.slice.partition("/")
        return (int(index), int(parts)) if parts else (0, 1)

    def rows_of(self, window: Window) -> int:
        return len(window.tokens) - self.drop_first

    def split_rows(self) -> dict[str, float]:
        """The rows each split may have; slices share them."""
        if not self.rows:
            return dict.fromkeys(SPLITS, float("inf"))
        held_out = max(1, round(self.rows * self.eval_fraction)) if self.eval_fraction else 0
        index, parts = self.part
        return {split: rows // parts + (index < rows % parts)
                for split, rows in (("train", self.rows - held_out), ("eval", held_out))}


@dataclass(frozen=True)
class Unit:
    """The windows of one shard of every target."""

    split: str
    index: int
    windows: tuple[Window, ...]
    rows: int  # before the norm filter

    @property
    def file_name(self) -> str:
        return f"shard_{self.index:05d}.h5"


class _OpenUnit:
    """Collects the windows of one split until a shard is full."""

    def __init__(self, split: str):
        self.split, self.index, self.windows, self.rows = split, 0, [], 0

    def add(self, window: Window, rows: int):
        self.windows.append(window)
        self.rows += rows

    def take(self) -> Unit:
        unit = Unit(self.split, self.index, tuple(self.windows), self.rows)
        self.index, self.windows, self.rows = self.index + 1, [], 0
        return unit


def plan_units(settings: Settings, text: TextSource, held_out: HeldOut, tokenizer,
               bos: int | None) -> Iterator[Unit]:
    """Every shard of the harvest in a fixed order. Documents of a split that is full are passed
    over; the last window of a split is cut where its rows are reached."""
    left, (index, parts) = settings.split_rows(), settings.part
    open_units = {split: _OpenUnit(split) for split in SPLITS}
    for document, words in enumerate(text.documents()):
        if not any(left.values()):
            break
        if document % parts != index:
            continue
        split = "eval" if document in held_out else "train"
        if not left[split]:
            continue
        tokens = document_tokens(tokenizer, words)
        for window in windows_of(document, tokens, settings.context, bos):
            rows = min(settings.rows_of(window), left[split])
            if rows <= 0:
                break
            if open_units[split].rows + rows > settings.shard_rows:
                yield open_units[split].take()
            cut = window.tokens[:rows + settings.drop_first]
            open_units[split].add(Window(document, cut), rows)
            left[split] -= rows
    for unit in open_units.values():
        if unit.rows:
            yield unit.take()


class OutputFolder:
    """DIR: its state file, its lock, and where each shard goes. Slices of one harvest share DIR:
    each has a state, a lock and names of its own."""

    def __init__(self, path: str | Path, targets: list[Target], part: tuple[int, int] = (0, 1)):
        self.path = Path(path)
        self.prefix = f"slice_{part[0]:05d}_" if part[1] > 1 else ""
        self.state_file = self.path / (self.prefix + STATE_FILE)
        self.folders = {t: self.path / t.name if len(targets) > 1 else self.path for t in targets}
        self.state: dict = {}

    def claim(self, settings: Settings):
        """Takes DIR for these settings, or refuses it; self.state then holds what is known."""
        self._lock()
        wanted = json.loads(json.dumps(asdict(settings)))
        others = sorted(set(self.path.glob("*" + STATE_FILE)) - {self.state_file})
        if others:
            self._refuse_other_slice(wanted, json.loads(others[0].read_text()))
        if self.state_file.exists():
            self.state = json.loads(self.state_file.read_text())
            self._refuse_other(wanted)
        elif others:
            self.state = {"settings": wanted, "complete": False}
        elif found := sorted(self.path.rglob("*.h5")):
            raise ToolError(USAGE, f"--out '{self.path}' holds '{found[0].name}' but no "
                            f"{STATE_FILE}: it was not made by this tool", "give another folder")
        else:
            self.state = {"settings": wanted, "complete": False}

    def _lock(self):
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = open(self.path / f".{self.prefix}harvest.lock", "w")
        except OSError as error:
            raise ToolError(ERROR, f"cannot write into --out '{self.path}': {error.strerror}",
                            "a folder that you may write into, or its name") from error
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ToolError(ERROR, f"another harvest is writing to '{self.path}'") from error

    def _refuse_other(self, wanted: dict):
        found = {"slice": "", **self.state.get("settings", {})}
        for name, value in wanted.items():
            if found.get(name) != value:
                raise ToolError(USAGE, f"--out '{self.path}' was begun with {name} = "
                                f"{found.get(name)}, now it is {value}",
                                "give the same settings to resume it, or another folder")

    def _refuse_other_slice(self, wanted: dict, state: dict):
        """Slices of the same number of parts, of the same harvest, and no harvest without any."""
        found = {"slice": "", **state.get("settings", {})}
        parts = [settings["slice"].partition("/")[2] for settings in (found, wanted)]
        if parts[0] != parts[1]:
            raise ToolError(USAGE, f"--out '{self.path}' holds "
                            + (f"slices of {parts[0]}" if parts[0] else "a harvest without slices"),
                            "the same --slice I/N for all parts, or another folder")
        for name in wanted:
            if name != "slice" and found.get(name) != wanted[name]:
                raise ToolError(USAGE, f"--out '{self.path}' has slices with {name} = "
                                f"{found.get(name)}, now it is {wanted[name]}",
                                "give all slices the same settings, or another folder")

    def save(self):
        partial = self.state_file.with_name(self.state_file.name + ".partial")
        with open(partial, "w") as file:
            json.dump(self.state, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.state_file)

    def shard(self, target: Target, unit: Unit) -> Path:
        folder = self.folders[target]
        return (folder / "eval" if unit.split == "eval" else folder) / (self.prefix + unit.file_name)

    def has(self, unit: Unit) -> bool:
        """Whether the shard is final for every target."""
        return all(self.shard(target, unit).exists() for target in self.folders)
