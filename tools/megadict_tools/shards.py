"""Activation shards: HDF5 files that the megadict binary trains on.

activations [rows, d]  float32, float16, or uint16 with the attribute dtype = "bfloat16"
tokens, position, document [rows] uint32    norm [rows] float32, of the row as it is stored

chunk_checksum [chunks] uint32, of the chunks of `activations`

The layout is that of src/data/shard_file.h: chunks of whole rows with Fletcher-32 checksums. A
shard is written under another name and renamed when it is complete, so that every *.h5 is whole.
"""

import os
import re
from pathlib import Path
from typing import Iterator

import h5py
import numpy as np
import torch

from .errors import BAD_DATA, ToolError, one_line

DTYPES = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype("<u2")}
CHUNK_BYTES = 512 << 10
COLUMN_CHUNK_ROWS = 1 << 16
LABELS = ("tokens", "position", "document")


def tool_version() -> str:
    """The project's version, from the one place that states it."""
    text = (Path(__file__).resolve().parents[2] / "CMakeLists.txt").read_text()
    return re.search(r"project\(megadict VERSION ([0-9.]+)", text).group(1)


def chunk_rows(width: int, itemsize: int) -> int:
    return max(1, CHUNK_BYTES // (width * itemsize))


def stored(rows: torch.Tensor, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """float32 [rows, d] -> as stored, and the norms of that. Exit 3 where a value does not fit."""
    if dtype == "bfloat16":
        rounded = rows.to(torch.bfloat16)
        data = rounded.view(torch.uint16).numpy()
    else:
        rounded = rows.to(torch.float16 if dtype == "float16" else torch.float32)
        data = rounded.numpy()
    norms = torch.linalg.vector_norm(rounded.double(), dim=1)
    if not torch.isfinite(norms).all():
        bad = int((~torch.isfinite(norms)).nonzero()[0])
        if torch.isfinite(rows[bad]).all():
            raise ToolError(BAD_DATA, f"an activation of {rows[bad].abs().max():.3g} does not fit "
                            f"{dtype}", "--dtype bfloat16 or float32")
        raise ToolError(BAD_DATA, "the model gives activations that are not finite",
                        "--compute float32")
    return data, norms.float().numpy()


class ShardWriter:
    """Appends rows to PATH.partial; close() makes it PATH. Left open, it stays a partial file."""

    def __init__(self, path: Path, width: int, dtype: str, rows_at_most: int, attributes: dict):
        self.path, self.dtype, self.rows = path, dtype, 0
        self.partial = path.with_name(path.name + ".partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = h5py.File(self.partial, "w")
        rows = min(rows_at_most, chunk_rows(width, DTYPES[dtype].itemsize))
        self._create("activations", (width,), DTYPES[dtype], rows)
        self._create("norm", (), np.dtype("<f4"), COLUMN_CHUNK_ROWS)
        for label in LABELS:
            self._create(label, (), np.dtype("<u4"), COLUMN_CHUNK_ROWS)
        self.file["activations"].attrs["dtype"] = dtype
        self.file.attrs.update({"megadict_version": tool_version(), **attributes,
                                "d_in": width, "dtype": dtype})

    def _create(self, name: str, row_shape: tuple, dtype: np.dtype, rows: int):
        self.file.create_dataset(name, (0, *row_shape), dtype, maxshape=(None, *row_shape),
                                 chunks=(rows, *row_shape), fletcher32=True)

    def append(self, rows: torch.Tensor, labels: dict[str, np.ndarray]):
        """float32 rows [n, d] and their `tokens`, `position`, `document` [n]."""
        data, norms = stored(rows, self.dtype)
        for name, part in {"activations": data, "norm": norms, **labels}.items():
            dataset = self.file[name]
            dataset.resize(self.rows + len(data), axis=0)
            dataset[self.rows:] = part
        self.rows += len(data)

    def close(self):
        if self.rows == 0:
            raise ToolError(BAD_DATA, f"no row is left for '{self.path}'",
                            "a larger --max_norm_multiple or --shard_rows")
        self.file.attrs["rows"] = self.rows
        self.file["chunk_checksum"] = self._checksums()
        self.file.close()
        with open(self.partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.partial, self.path)


    def _checksums(self) -> np.ndarray:
        """The four bytes that the filter put behind each stored chunk."""
        dataset = self.file["activations"]
        self.file.flush()
        found = np.zeros(-(-self.rows // dataset.chunks[0]), "<u4")
        with open(self.partial, "rb") as file:
            for i in range(len(found)):
                chunk = dataset.id.get_chunk_info(i)
                file.seek(chunk.byte_offset + chunk.size - 4)
                found[chunk.chunk_offset[0] // dataset.chunks[0]] = np.frombuffer(
                    file.read(4), "<u4")[0]
        return found


def find_shards(folder: str | Path) -> list[Path]:
    paths = sorted(Path(folder).glob("*.h5"))
    if not paths:
        raise ToolError(BAD_DATA, f"no shard (*.h5) in '{folder}'")
    return paths


def _checked(path: Path) -> h5py.File:
    try:
        file = h5py.File(path, "r")
        shape = file["activations"].shape
    except (OSError, KeyError) as error:
        raise ToolError(BAD_DATA, f"'{path}' is no activation shard: {one_line(error)}") from error
    if len(shape) != 2 or 0 in shape:
        raise ToolError(BAD_DATA, f"'{path}': 'activations' is {list(shape)}, allowed: [rows, d], "
                        "neither of them 0")
    return file


def count_rows(folder: str | Path) -> int:
    total = 0
    for path in find_shards(folder):
        with _checked(path) as file:
            total += file["activations"].shape[0]
    return total


def as_float32(data: np.ndarray, dtype: str | None) -> np.ndarray:
    if data.dtype == np.uint16:
        if dtype != "bfloat16":
            raise ToolError(BAD_DATA, "uint16 activations without the attribute dtype = bfloat16")
        return (data.astype(np.uint32) << 16).view(np.float32)
    return data.astype(np.float32, copy=False)


def _blocks(file: h5py.File, block_rows: int) -> Iterator[np.ndarray]:
    data = file["activations"]
    for start in range(0, data.shape[0], block_rows):
        try:
            block = as_float32(data[start:start + block_rows], data.attrs.get("dtype"))
        except OSError as error:
            raise ToolError(BAD_DATA, f"cannot read '{file.filename}' near row {start}: "
                            f"{one_line(error)}") from error
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise ToolError(BAD_DATA, f"'{file.filename}' row {start + np.argmin(finite)} is not "
                            "finite")
        yield block


def read_blocks(folder: str | Path, block_rows: int = 8192) -> Iterator[np.ndarray]:
    """All rows of a folder's shards in order, float32 [<= block_rows, d]. Exit 3 with the file's
    name for a corrupt shard, one of another width, or a row that is not finite."""
    width = None
    for path in find_shards(folder):
        with _checked(path) as file:
            found = file["activations"].shape[1]
            width = width or found
            if found != width:
                raise ToolError(BAD_DATA, f"'{path}' is {found} wide, the shards before it {width}")
            yield from _blocks(file, block_rows)


def read_rows(folder: str | Path) -> np.ndarray:
    """Every row of a folder at once, float32 [rows, d]."""
    return np.concatenate(list(read_blocks(folder)))
