#!/usr/bin/env python3
"""Activation caches of other tools become shards for megadict train.

    tools/import_activations.py --from CACHE --out acts

Reads what `megadict data import` does not: SAELens' Arrow caches (with token_ids), folders of
OpenMOSS chunks in their numerical order, .pt tensors and dictionaries, .npz archives; no pickled code
is run. It turns each file into safetensors beside OUT and lets `megadict data import` do the rest:
refuse what is not finite, hold out rows, write, read back, verify.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Iterator

from megadict_tools.environment import use_environment

use_environment()

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from megadict_tools.dictionaries import find_binary
from megadict_tools.errors import (BAD_DATA, USAGE, OneLineParser, ToolError, add_quiet, main_guard,
                                   one_line)
from megadict_tools.progress import Progress

ROWS = ("activation", "activations")
TOKENS = ("tokens", "token_ids")
MASKS = ("mask", "attention_mask")
CHUNK = re.compile(r"(?:shard-(\d+)-)?chunk-(\d+)\.(?:safetensors|pt)$")


def make_parser() -> OneLineParser:
    parser = OneLineParser(prog="import_activations", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--from", dest="source", required=True, metavar="PATH",
        help="a SAELens cache, a folder of chunks, a .pt or .npz file or a folder of one kind")
    add("--out", required=True, metavar="DIR", help="folder to make")
    add("--tensor", metavar="NAME", help="the activations, where a file holds several tensors or columns")
    add("--eval_fraction", type=float, default=0.05,
        help="share of the rows that is held out (default 0.05)")
    for name in ("model", "hook", "tokenizer"):
        add(f"--{name}", metavar="NAME", help="kept in the shards")
    add("--layer", type=int, help="kept in the shards")
    add("--store", choices=["float32", "float16", "bfloat16"], help="of the shards (default: the files')")
    add("--seed", type=int, default=0, help="of the choice of held-out documents (default 0)")
    add("--megadict", metavar="FILE", help="the binary (default: build/release/bin/megadict)")
    add_quiet(parser)
    return parser


def refuse(path, why: str, hint: str = ""):
    raise ToolError(BAD_DATA, f"cannot read '{path}': {why}", hint)


# ---- files to dictionaries of tensors -----------------------------------------------------------

def of_pt(path: Path) -> dict[str, torch.Tensor]:
    found = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(found, torch.Tensor):
        return {ROWS[0]: found}
    if not isinstance(found, dict):
        refuse(path, "neither a tensor nor a dictionary of tensors")
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def of_npz(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path, allow_pickle=False) as found:
        return {name: torch.from_numpy(np.ascontiguousarray(found[name])) for name in found.files}


READERS = {".pt": of_pt, ".npz": of_npz, ".safetensors": load_file}


def read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return READERS[path.suffix](path)
    except ToolError:
        raise
    except Exception as error:  # whatever a reader makes of a damaged file
        refuse(path, one_line(error))


def arrow_files(folder: Path) -> list[Path]:
    """In the order that the cache says; not every one of them is named in sequence."""
    try:
        state = json.loads((folder / "state.json").read_text())
        names = [one["filename"] for one in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        refuse(folder / "state.json", f"no list of data files: {one_line(error)}")
    for name in names:
        if Path(name).name != name:
            refuse(folder / "state.json", f"it names '{name}', no file of this folder")
    return [folder / name for name in names]


def flattened(column) -> tuple[np.ndarray, list[int]]:
    """Nested lists of equal lengths as one array and its shape."""
    import pyarrow as pa

    values = column.storage if isinstance(column, pa.ExtensionArray) else column
    shape = [len(values)]
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or \
            pa.types.is_fixed_size_list(values.type):
        inner = values.flatten()
        if values.null_count or shape[-1] == 0 or len(inner) % len(values):
            raise ValueError("lists of unequal length")
        lengths = values.value_lengths().to_numpy(zero_copy_only=False)
        if (lengths != lengths[0]).any():
            raise ValueError("lists of unequal length")
        shape.append(int(lengths[0]))
        values = inner
    return values.to_numpy(zero_copy_only=False), shape


def of_arrow(path: Path, wanted: str | None) -> Iterator[dict[str, torch.Tensor]]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            for batch in pa.ipc.open_stream(file):
                names = [name for name in batch.schema.names if name not in TOKENS]
                if wanted is None and len(names) != 1:
                    refuse(path, f"columns {', '.join(names)}", "--tensor NAME")
                out = {}
                for name in batch.schema.names:
                    if name in TOKENS or name == (wanted or names[0]):
                        values, shape = flattened(batch.column(name))
                        out[name] = torch.from_numpy(values.copy()).reshape(shape)
                yield out
    except ToolError:
        raise
    except Exception as error:
        refuse(path, one_line(error))


def chunk_number(path: Path) -> tuple[int, int]:
    shard, chunk = CHUNK.search(path.name).groups()
    return int(shard or 0), int(chunk)


def sources(path: Path, wanted: str | None) -> Iterator[tuple[Path, dict[str, torch.Tensor]]]:
    """Every file, or part of one, with its tensors, in the cache's order."""
    if (path / "state.json").is_file():
        for file in arrow_files(path):
            for part in of_arrow(file, wanted):
                yield file, part
        return
    files = [path] if path.is_file() else sorted(one for one in path.glob("*")
                                                 if one.suffix in READERS)
    if not files:
        refuse(path, "nothing there to import",
               "a SAELens cache (state.json), chunk-*.safetensors, .pt or .npz")
    if all(CHUNK.search(one.name) for one in files):
        files.sort(key=chunk_number)
    elif len({one.suffix for one in files}) > 1:
        refuse(path, "files of several kinds")
    if files[0].suffix not in READERS:
        refuse(path, f"allowed: {', '.join(READERS)}, or a SAELens cache", "megadict data import")
    for file in files:
        yield file, read(file)


# ---- dictionaries of tensors to rows ------------------------------------------------------------

def chosen(path: Path, tensors: dict[str, torch.Tensor], wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in tensors:
            refuse(path, f"no '{wanted}'; it holds {', '.join(tensors)}")
        return wanted
    floats = [name for name, one in tensors.items() if one.is_floating_point() and one.dim() >= 2]
    for name in ROWS:
        if name in floats:
            return name
    if len(floats) != 1:
        refuse(path, f"{len(floats)} tensors of floats with two dimensions or more", "--tensor NAME")
    return floats[0]


def column(path: Path, tensors: dict[str, torch.Tensor], names: tuple, leading: torch.Size):
    for name in names:
        if name in tensors:
            if tensors[name].numel() != leading.numel():
                refuse(path, f"'{name}' is {list(tensors[name].shape)}, the activations are "
                       f"{list(leading)} rows")
            yield tensors[name].reshape(-1)


def rows_of(path: Path, tensors: dict[str, torch.Tensor], wanted: str | None,
            first_document: int) -> tuple[dict[str, torch.Tensor], int]:
    """Columns as `megadict data import` reads them, and the number of documents (contexts)."""
    whole = tensors[chosen(path, tensors, wanted)]
    if not whole.is_floating_point() or whole.dim() < 2:
        refuse(path, f"activations of {whole.dtype} {list(whole.shape)}; allowed: floats [.., d]")
    leading = whole.shape[:-1]
    out = {"activations": whole.reshape(-1, whole.shape[-1]).contiguous()}
    for tokens in list(column(path, tensors, TOKENS, leading))[:1]:
        out["tokens"] = tokens.to(torch.int64).contiguous()
    documents = 0
    if whole.dim() >= 3:
        rows, context = leading.numel(), leading[-1]
        documents = rows // max(context, 1)
        index = torch.arange(rows)
        out["position"] = index % context
        out["document"] = first_document + index // context
    masks = [mask != 0 for mask in column(path, tensors, MASKS, leading)]
    if masks:
        out["mask"] = torch.stack(masks).all(0).to(torch.uint8)
    return out, documents


def stored_bytes(path: Path) -> int:
    return sum(one.stat().st_size for one in ([path] if path.is_file() else path.glob("*")))


def import_rows(options, folder: str) -> None:
    words = [find_binary(options.megadict), "data", "import", "--from", folder, "--out", options.out,
             "--tensor", "activations", "--eval_fraction", str(options.eval_fraction),
             "--seed", str(options.seed)]
    for name in ("model", "hook", "tokenizer", "layer", "store"):
        if getattr(options, name) is not None:
            words += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ToolError(done.returncode, last.removeprefix("megadict: "))
    if not options.quiet:
        print(done.stdout, end="")


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    source, out = Path(options.source), Path(options.out)
    if not source.exists():
        raise ToolError(BAD_DATA, f"'{source}' is not there")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ToolError(USAGE, f"--out '{out}' exists", "another folder")
    if not out.absolute().parent.is_dir():
        raise ToolError(USAGE, f"--out '{out}': the folder above it is not there")
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as scratch:
        documents, shown = 0, Progress("import", stored_bytes(source), "bytes", quiet=options.quiet)
        for number, (path, tensors) in enumerate(sources(source, options.tensor)):
            rows, more = rows_of(path, tensors, options.tensor, documents)
            documents += more
            save_file(rows, f"{scratch}/{number:08d}.safetensors")
            shown.advance(rows["activations"].nbytes)
        shown.close()
        import_rows(options, scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main_guard("import_activations", main))
