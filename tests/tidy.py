#!/usr/bin/env python3
"""Tidiness as a test: reads every source once and fails on what a reader should not have to catch.

    tests/tidy.py [--compile-commands build/release/compile_commands.json]

Fails on: an include against the order of the rooms, an identifier or header in a room that may not
say it (the message names the replacement), sources no CMake file lists, left-over FIX-ME marks,
paths and hosts of somebody's machine, and exceptions below that nothing needs any more. Reports,
without failing, functions of more than 70 and files of more than 400 lines.
"""

import argparse
import ast
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tidy_cpp import blank_comments_and_strings, long_functions

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("src", "tests", "tools", "launch", "configs", "cmake", ".ci")
CPP = {".h", ".cpp", ".cu", ".cuh"}
FUNCTION_LINES, FILE_LINES = 70, 400

# A room may include itself and the rooms to its left, but for the pairs below.
ROOMS = ("base", "io", "comm", "kernels", "data", "model", "eval", "train", "lab", "app")
NOT_EVEN = {("comm", "io"), ("kernels", "comm")}


@dataclass(frozen=True)
class Ban:
    """`pattern` may appear in C++ below `scope` only in files that start with one of `allowed`."""

    rule: str
    pattern: re.Pattern
    scope: str
    allowed: tuple[str, ...]
    instead: str


def ban(rule, pattern, scope, allowed, instead):
    return Ban(rule, re.compile(pattern), scope, allowed, instead)


# Where MPI and NCCL may be named: their room, and what stands in for NCCL in its tests.
COMM = ("src/comm/", "tests/comm_", "tests/support/nccl_")

# Matched against code whose comments and strings are blanked.
IDENTIFIERS = (
    ban("mpi", r"\bMPI_\w+|\bnccl[A-Z]\w*", "", COMM, "Communicator (comm/communicator.h)"),
    ban("getenv", r"\b(secure_)?getenv\b|\benviron\b", "src/", ("src/comm/launch_env.cpp",),
        "environment() (comm/launch.h)"),
    ban("exit", r"\b(exit|_exit|_Exit|quick_exit|abort)\s*\(", "src/", (), "throw Error (base/error.h)"),
    ban("terminal", r"\bstd::c(out|err|log)\b|\b(v?f?printf|puts|putchar|perror)\s*\(|\bfmt::print\b"
        r"|\bSTD(OUT|ERR)_FILENO\b", "src/", ("src/base/log.cpp",), "say, note, warn (base/log.h)"),
    ban("hdf5", r"\bH5[A-Z]{0,2}[a-z_]\w*|\bH5[A-Z]_\w+", "", ("src/io/",), "the HDF5 files of src/io"),
    ban("feature-ifdef", r"^\s*#\s*(el)?if.*(MEGADICT|NCCL|CUDA|MPI)", "src/", (),
        "a pair of sources of which CMake picks one (x_nccl.cpp, x_nccl_absent.cpp)"),
    ban("using-namespace", r"^\s*using namespace (std|at|torch|c10)\b", "", (), "the qualified name"),
)

# Matched against the target of an #include.
HEADERS = (
    ban("mpi", r"^(mpi|nccl)\.h$", "", COMM, "comm/communicator.h"),
    ban("hdf5", r"^(hdf5|H5\w*)\.h$", "", ("src/io/",), "the headers of src/io"),
    ban("boost", r"^boost/", "", ("src/app/",), "the standard library, or options in src/app"),
    ban("torch", r"^torch/torch\.h$", "", (), "ATen/ATen.h in sources, ATen/core/Tensor.h in headers"),
    ban("terminal", r"^iostream$", "src/", ("src/base/log.cpp",), "base/log.h"),
    ban("tensor-free", r"^(ATen|c10|torch)/", "src/base/", (), "BufferView (base/buffer_view.h)"),
    ban("tensor-free", r"^(ATen|c10|torch)/", "src/io/", (), "BufferView (base/buffer_view.h)"),
    ban("tensor-free", r"^(ATen|c10|torch)/", "src/comm/", ("src/comm/communicator_nccl",),
        "BufferView (base/buffer_view.h)"),
)
IN_HEADERS = ban("slow-header", r"^ATen/ATen\.h$", "src/", (), "ATen/core/Tensor.h (1.8 s a file, not 11)")

# Matched against every line of every text file. Split so that this file does not match itself.
ANYWHERE = (
    ("left-open", re.compile("FIX" "ME"), "mend it, or say TODO and why it can wait"),
    ("machine-path", re.compile(r"(?:^|[^\w.$}-])/(?:work|farm|root|tmp|home/\w+)/(?!\*)"),
     "a path relative to the repository, or one that a variable gives"),
    ("host", re.compile("py" r"pi\.org|python" r"hosted|deb\." r"debian|npm" r"js\.org"),
     "the package's name"),
)

# (rule, file): why it may. One that is no longer needed fails.
EXCEPTIONS = {
    ("exit", "src/comm/launch.cpp"): "abort_all: where every error leaves the process",
    ("exit", "src/comm/launch_env.cpp"): "tasks that leave the one message to task 0",
}


@dataclass
class Findings:
    problems: list[str] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    used: set[tuple[str, str]] = field(default_factory=set)

    def add(self, rule: str, path: str, line: int, text: str) -> None:
        if (rule, path) in EXCEPTIONS:
            self.used.add((rule, path))
        else:
            self.problems.append(f"{path}:{line}: [{rule}] {text}")


def check_bans(bans, text: str, path: str, line: int, found: Findings) -> None:
    for row in bans:
        if not path.startswith(row.scope) or path.startswith(row.allowed or ("\0",)):
            continue
        if match := row.pattern.search(text):
            found.add(row.rule, path, line, f"{match.group().strip()}: use {row.instead}")


def check_include(target: str, quoted: bool, path: str, line: int, found: Findings) -> None:
    bans = HEADERS + (IN_HEADERS,) if path.endswith(".h") else HEADERS
    check_bans(bans, target, path, line, found)
    if not quoted or not path.startswith("src/"):
        return
    room, other = path.split("/")[1], target.split("/")[0]
    if "/" not in target or other not in ROOMS:
        found.add("include", path, line, f'"{target}": write it from src on, as "room/file.h"')
    elif not (ROOT / "src" / target).exists():
        found.add("include", path, line, f'"{target}" does not exist')
    elif ROOMS.index(other) > ROOMS.index(room) or (room, other) in NOT_EVEN:
        found.add("include", path, line, f"{room} may not include {other} (the order: {' '.join(ROOMS)})")


INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')


def check_cpp(path: str, text: str, found: Findings) -> None:
    code = blank_comments_and_strings(text)
    for number, (line, bare) in enumerate(zip(text.splitlines(), code.splitlines()), 1):
        include = INCLUDE.match(line) if bare.lstrip().startswith("#") else None
        if include:
            check_include(include.group(2), include.group(1) == '"', path, number, found)
        else:
            check_bans(IDENTIFIERS, bare, path, number, found)
    if path.endswith((".h", ".cuh")) and not re.search(r"^#pragma once", text, re.M):
        found.add("pragma-once", path, 1, "a header without #pragma once")
    for start, length, name in long_functions(code, FUNCTION_LINES):
        found.reports.append(f"{path}:{start}: {name} has {length} lines")


def check_python(path: str, text: str, found: Findings) -> None:
    for node in ast.walk(ast.parse(text, path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            if length > FUNCTION_LINES:
                found.reports.append(f"{path}:{node.lineno}: {node.name} has {length} lines")


def check_listed(paths: list[str], commands: Path, found: Findings) -> None:
    """Every C++ source is compiled, or named as an alternative by a CMake file of or above its folder."""
    entries = json.loads(commands.read_text())
    compiled = {str(Path(entry["directory"], entry["file"]).resolve()) for entry in entries}
    for path in paths:
        full = ROOT / path
        if full.suffix not in {".cpp", ".cu"} or str(full) in compiled:
            continue
        folders = [parent for parent in full.parents if parent.is_relative_to(ROOT)]
        listings = [f for d in folders for f in (*d.glob("*.cmake"), d / "CMakeLists.txt") if f.exists()]
        named = re.compile(rf"\b{re.escape(full.name)}\b")
        if not any(named.search(listing.read_text()) for listing in listings):
            found.add("unlisted", path, 1, f"no CMake file lists it (add it in {full.parent.relative_to(ROOT)})")


def source_files() -> list[Path]:
    files = [f for f in ROOT.iterdir() if f.is_file() and f.name != ".git"]
    for folder in FOLDERS:
        files += [f for f in (ROOT / folder).rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    return sorted(files)


def newest_commands() -> Path | None:
    found = sorted(ROOT.glob("build/*/compile_commands.json"), key=lambda f: f.stat().st_mtime)
    return found[-1] if found else None


def check_file(path: str, text: str, found: Findings) -> None:
    for number, line in enumerate(text.splitlines(), 1):
        for rule, pattern, instead in ANYWHERE:
            if match := pattern.search(line):
                found.add(rule, path, number, f"{match.group().strip()}: use {instead}")
    suffix = Path(path).suffix
    if suffix in CPP:
        check_cpp(path, text, found)
    elif suffix == ".py":
        check_python(path, text, found)
    lines = text.count("\n")
    if lines > FILE_LINES and suffix in CPP | {".py", ".sh"}:
        found.reports.append(f"{path}: {lines} lines")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--compile-commands", type=Path, default=newest_commands())
    commands = parser.parse_args().compile_commands
    if commands is None or not commands.exists():
        print("tidy: no compile_commands.json: configure first (cmake --preset release)", file=sys.stderr)
        return 2
    found, paths = Findings(), []
    for file in source_files():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # binary test data
        paths.append(file.relative_to(ROOT).as_posix())
        check_file(paths[-1], text, found)
    check_listed([p for p in paths if p.startswith(("src/", "tests/"))], commands, found)
    for rule, path in sorted(EXCEPTIONS.keys() - found.used):
        found.problems.append(f"tests/tidy.py: the exception ({rule}, {path}) is no longer needed")
    for title, lines in (("long, to look at:", found.reports), ("problems:", found.problems)):
        if lines:
            print(title, *lines, sep="\n  ")
    print(f"{len(paths)} files, {len(found.problems)} problems")
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
