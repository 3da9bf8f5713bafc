#!/usr/bin/env python3
"""Sums test results and names every skip and failure.

    count_results.py FILE...

FILE is what CTest (--output-junit) or pytest (--junitxml) wrote, or a .tsv of checks with lines
"passed|failed|skipped <tab> name <tab> reason". A GoogleTest program counts with its single tests,
read from its own summary. The last line printed is "N passed, N failed, N skipped"; the exit code
is 1 when something failed, when a file is missing or when nothing ran.
"""

import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

GTEST_COUNT = re.compile(r"^\[  (PASSED|SKIPPED|FAILED)\s*\] (\d+) tests?[.,]", re.M)
GTEST_SKIP = re.compile(r"^\[  SKIPPED \] ([\w./]+\.[\w./]+) \(\d+ ms\)$", re.M)
GTEST_SKIP_REASON = re.compile(r"^\S+:\d+: Skipped\n(.*?)\n\n?\[  SKIPPED \]", re.M | re.S)
NOT_ALLOWED_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd]")
COLOUR = re.compile(r"\x1b?\[[0-9;]*m|\[NON-XML-CHAR-0x1B\]")
# CTest writes <skipped> also for a program it could not find: only these are real skips.
REAL_SKIP = re.compile(r"SKIP_|Disabled", re.I)


@dataclass
class Totals:
    passed: int = 0
    failures: list[str] = field(default_factory=list)
    skips: list[str] = field(default_factory=list)


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def add_gtest(name: str, output: str, succeeded: bool, totals: Totals) -> bool:
    """Counts a GoogleTest program by its own summary; False when `output` holds none."""
    counts = {"PASSED": 0, "SKIPPED": 0, "FAILED": 0}
    matches = GTEST_COUNT.findall(output)
    if not matches:
        return False
    for kind, number in matches:  # every rank may print one: they are equal
        counts[kind] = max(counts[kind], int(number))
    totals.passed += counts["PASSED"]
    skipped = list(dict.fromkeys(GTEST_SKIP.findall(output)))
    reasons = [" ".join(reason.split()) for reason in GTEST_SKIP_REASON.findall(output)]
    for i in range(counts["SKIPPED"]):
        test = skipped[i] if i < len(skipped) else "?"
        totals.skips.append(f"{name} {test}: {reasons[i] if i < len(reasons) else 'no reason given'}")
    failed = re.findall(r"^\[  FAILED  \] ([\w./]+\.[\w./]+)(?:, where|$)", output, re.M)
    names = list(dict.fromkeys(failed))
    for i in range(max(counts["FAILED"], 0 if succeeded else 1)):
        totals.failures.append(f"{name} {names[i]}" if i < len(names) else name)
    if succeeded and not any(counts.values()):
        totals.failures.append(f"{name}: holds no test")
    return True


def add_case(case: ElementTree.Element, totals: Totals) -> None:
    group, name = case.get("classname", ""), case.get("name", "?")
    if group and group != name:
        name = f"{group}::{name}"
    skipped = case.find("skipped")
    failed = case.find("failure") is not None or case.find("error") is not None
    output = case.findtext("system-out") or ""
    if skipped is not None:
        message = skipped.get("message") or skipped.text or ""
        if case.get("status") == "notrun" and not REAL_SKIP.search(message):
            totals.failures.append(f"{name}: did not run: {message}")
        else:
            reason = last_line(output) if message.startswith("SKIP_") else " ".join(message.split())
            totals.skips.append(f"{name}: {reason or 'no reason given'}")
    elif not add_gtest(name, output, not failed, totals):
        if failed:
            totals.failures.append(name)
        else:
            totals.passed += 1


def add_file(path: Path, totals: Totals) -> None:
    if not path.exists():
        totals.failures.append(f"{path} is missing: the tests that write it did not get to their end")
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".tsv":
        for line in text.splitlines():
            kind, name, reason = (line.split("\t") + ["", ""])[:3]
            if kind == "passed":
                totals.passed += 1
            else:
                listed = totals.skips if kind == "skipped" else totals.failures
                listed.append(f"{name}: {reason}" if reason else name)
        return
    text = COLOUR.sub("", NOT_ALLOWED_IN_XML.sub("", text))
    for case in ElementTree.fromstring(text).iter("testcase"):
        add_case(case, totals)


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    totals = Totals()
    for path in sys.argv[1:]:
        add_file(Path(path), totals)
    for title, names in (("skipped", totals.skips), ("failed", totals.failures)):
        for name in names:
            print(f"{title}  {name}")
    if totals.passed == 0 and not totals.failures:
        print("no test ran")
    print(f"{totals.passed} passed, {len(totals.failures)} failed, {len(totals.skips)} skipped")
    return 0 if totals.passed and not totals.failures else 1


if __name__ == "__main__":
    sys.exit(main())
