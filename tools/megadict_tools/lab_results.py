"""Reading what `megadict lab run NAME --out OUT` leaves: OUT/NAME/result.json, OUT/NAME_quick/result.json."""

import difflib
import math
from dataclasses import dataclass
from pathlib import Path

from .errors import BAD_DATA, USAGE, ToolError
from .run_folder import read_json


VERDICTS = ("met", "MISSED", "holds", "DOES NOT HOLD", "-")


@dataclass
class Cell:
    group: str
    run: int
    settings: dict  # {"data": ..., "model": ...}
    numbers: dict


@dataclass
class Value:
    """Over the runs of a group: mean and population standard deviation."""

    mean: float
    sd: float
    runs: int


@dataclass
class Curve:
    steps: list[float]
    mean: list[float]
    sd: list[float]
    runs: int


def _number(value) -> float | None:
    """None for what was not finite, which JSON says as null."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _value(values: list[float]) -> Value:
    mean = sum(values) / len(values)
    return Value(mean, math.sqrt(sum((v - mean)**2 for v in values) / len(values)), len(values))


@dataclass
class Experiment:
    folder: Path
    name: str
    facts: dict
    table: list[dict]
    cells: list[Cell]

    @property
    def quick(self) -> bool:
        return bool(self.facts.get("quick"))

    @property
    def comparable(self) -> bool:
        """Another problem or training than the seeds' has neither reported numbers nor bands."""
        return any(row.get("reported") or row.get("band") for row in self.table)

    def of(self, group: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.group == group]

    def has(self, group: str) -> bool:
        return bool(self.of(group))

    def value(self, group: str, key: str) -> Value | None:
        """None where no run has that number."""
        found = [_number(cell.numbers.get(key)) for cell in self.of(group)]
        found = [v for v in found if v is not None]
        return _value(found) if found else None

    def curve(self, group: str, key: str) -> Curve | None:
        """Mean of the runs at the steps that all of them have."""
        runs = [dict(zip(c["step"], c[key])) for cell in self.of(group)
                if isinstance(c := cell.numbers.get("curve"), dict) and isinstance(c.get("step"), list)
                and isinstance(c.get(key), list)]
        points = [(step, [_number(run.get(step)) for run in runs]) for step in sorted(runs[0])] if runs else []
        points = [(step, _value(values)) for step, values in points if None not in values]
        return Curve([s for s, _ in points], [v.mean for _, v in points], [v.sd for _, v in points],
                     len(runs)) if points else None

    def model(self, group: str) -> dict:
        return self.of(group)[0].settings.get("model", {}) if self.has(group) else {}

    def data(self, group: str) -> dict:
        return self.of(group)[0].settings.get("data", {}) if self.has(group) else {}

    def verdicts(self) -> dict[str, int]:
        """How many bands are met and MISSED, claims hold and do not, and lines have neither or no number (-)."""
        said = [row.get("verdict") for row in self.table]
        return {verdict: said.count(verdict) for verdict in VERDICTS}


ROW = {"what": str, "reported": str, "ours": (int, float, type(None)), "sd": (int, float, type(None)),
       "runs": int, "band": str, "verdict": str}
CELL = {"group": str, "run": int, "settings": dict, "numbers": dict}


def _fits(one, fields: dict) -> bool:
    return isinstance(one, dict) and all(isinstance(one.get(name), kind) for name, kind in fields.items())


def read_experiment(path: Path) -> Experiment:
    found = read_json(path)
    table, cells = found.get("table"), found.get("cells", [])
    if not (isinstance(found.get("experiment"), str) and isinstance(table, list) and isinstance(cells, list)):
        raise ToolError(BAD_DATA, f"'{path}' is no result of megadict lab run",
                        "it holds no experiment, table and cells; remove it and run the experiment again")
    for kind, rows, fields in (("table", table, ROW), ("cells", cells, CELL)):
        for i, row in enumerate(rows):
            if not _fits(row, fields):
                raise ToolError(BAD_DATA, f"'{path}': {kind}[{i}] has not {', '.join(fields)} of their types",
                                "remove it and run the experiment again")
    return Experiment(path.parent, found["experiment"], found, table,
                      [Cell(c["group"], c["run"], c["settings"], c["numbers"]) for c in cells])


def find_results(out: Path) -> list[Path]:
    if not out.is_dir():
        raise ToolError(USAGE, f"there is no folder '{out}'", "--out of megadict lab run")
    found = sorted(out.glob("*/result.json"))
    if not found and (out / "result.json").is_file():
        raise ToolError(USAGE, f"'{out}' is the folder of one experiment", f"name its parent, '{out.resolve().parent}'")
    if not found:
        raise ToolError(BAD_DATA, f"no result in '{out}': looked for '{out}/NAME/result.json' and "
                        f"'{out}/NAME_quick/result.json'", f"megadict lab run all --quick --out {out}")
    return found


def read_experiments(out: Path, only: list[str], order: list[str]) -> list[Experiment]:
    """Those found in `out`, in `order`, the full one before the quick one; `only`: names of experiments or
    of their folders."""
    paths = find_results(out)
    known = {path.parent.name for path in paths}
    known |= {name.removesuffix("_quick") for name in known}
    for name in only:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            there = ", ".join(sorted(path.parent.name for path in paths))
            raise ToolError(USAGE, f"no result of '{name}' in '{out}'",
                            f"did you mean '{near[0]}'?" if near else f"there are {there}")
    wanted = [p for p in paths if not only or {p.parent.name, p.parent.name.removesuffix("_quick")} & set(only)]
    place = {name: i for i, name in enumerate(order)}
    return sorted((read_experiment(path) for path in wanted),
                  key=lambda e: (place.get(e.name, len(place)), e.name, e.quick, e.folder.name))
