"""Reading what a run of megadict train leaves: metrics.jsonl, config.json, env.json, eval.json."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from .errors import BAD_DATA, ToolError, one_line


def read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ToolError(BAD_DATA, f"cannot read '{path}': {one_line(error)}") from error
    if not isinstance(found, dict):
        raise ToolError(BAD_DATA, f"'{path}' holds no JSON object")
    return found


def read_lines(path: Path) -> list[dict]:
    """Whole lines of a metrics.jsonl; a run that is going on may be writing the last one."""
    return [line for line, _ in lines_with_ends(path)]


def lines_with_ends(path: Path, offset: int = 0):
    """(object, byte behind it) of each whole line from `offset`."""
    try:
        file = open(path, "rb")
    except OSError as error:
        raise ToolError(BAD_DATA, f"cannot read '{path}': {error.strerror}", "a run folder of "
                        "megadict train") from error
    with file:
        file.seek(offset)
        for text in file:
            offset += len(text)
            if not text.endswith(b"\n"):
                return
            try:
                line = json.loads(text)
                if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                    raise ValueError("no object with an integer 'step'")
            except (ValueError, RecursionError) as error:
                raise ToolError(BAD_DATA, f"'{path}' near byte {offset - len(text)}: "
                                f"{one_line(error)}") from error
            yield line, offset


@dataclass
class Run:
    folder: Path
    name: str
    lines: list[dict]
    config: dict                                   # field -> {"value", "source"}
    environment: dict = field(default_factory=dict)
    evaluation: dict = field(default_factory=dict)  # eval.json, {} before the first evaluation

    def value(self, name: str, default=None):
        return self.config.get(name, {}).get("value", default)

    def curve(self, name: str) -> list[tuple[float, float]]:
        """(tokens, value) of every line that has the name; null is NaN."""
        return [(line["tokens"], math.nan if line[name] is None else float(line[name]))
                for line in self.lines if name in line and line.get("tokens") is not None]

    def last(self, name: str):
        return next((line[name] for line in reversed(self.lines) if line.get(name) is not None),
                    None)


def read_run(folder: str, name: str) -> Run:
    path = Path(folder)
    lines = read_lines(path / "metrics.jsonl")
    if not lines:
        raise ToolError(BAD_DATA, f"'{path / 'metrics.jsonl'}' has no line yet",
                        "a run that has logged a step (log.every_steps)")
    run = Run(path, name, lines, read_json(path / "config.json"))
    for attribute, files in (("environment", ("env.json",)),
                             ("evaluation", ("final/eval.json", "eval.json"))):
        for file in files:
            if (path / file).is_file():
                setattr(run, attribute, read_json(path / file))
                break
    return run


def short_names(folders: list[str]) -> list[str]:
    """The last parts of the paths, as few as tell them apart."""
    parts = [Path(f).resolve().parts for f in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names
