"""Which rows Megadict trains on in each step: src/data/batch_plan.h with last_batch = drop.

A peer that is given these batches sees exactly what the binary sees, whatever its mesh.
"""

from pathlib import Path
from typing import Iterator

import h5py
import numpy as np

from .shards import find_shards

CHUNK_ORDER, ROW_ORDER = 2, 3  # Purpose of src/base/philox.h
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def philox_bits64(seed: int, purpose: int, step: int, ids: np.ndarray) -> np.ndarray:
    """Rng::bits64 of src/base/philox.h: Philox4x32-10, counter (id, step | purpose), key seed."""
    ids = ids.astype(np.uint64)
    high = np.uint64(step | purpose << 40)
    counter = [ids & LOW, ids >> HALF,
               np.full_like(ids, high & LOW), np.full_like(ids, high >> HALF)]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        product0 = np.uint64(0xD2511F53) * counter[0]
        product1 = np.uint64(0xCD9E8D57) * counter[2]
        counter = [(product1 >> HALF) ^ counter[1] ^ np.uint64(key[0]), product1 & LOW,
                   (product0 >> HALF) ^ counter[3] ^ np.uint64(key[1]), product0 & LOW]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter[1] << HALF | counter[0]


def chunk_ranges(folder: str | Path) -> np.ndarray:
    """[chunks, 2] first global row of each chunk, and the one past its last."""
    ranges, before = [], 0
    for path in find_shards(folder):
        with h5py.File(path, "r") as file:
            data = file["activations"]
            rows, size = data.shape[0], (data.chunks or data.shape)[0]
        ranges += [(before + i, before + min(i + size, rows)) for i in range(0, rows, size)]
        before += rows
    return np.array(ranges)


def epoch_order(chunks: np.ndarray, seed: int, epoch: int, window_rows: int) -> np.ndarray:
    """All rows of an epoch in the order in which they are cut into batches."""
    by_key = np.argsort(philox_bits64(seed, CHUNK_ORDER, epoch, np.arange(len(chunks))),
                        kind="stable")
    windows, rows = [[]], 0
    for chunk in by_key:
        if rows >= window_rows:
            windows.append([])
            rows = 0
        windows[-1].append(np.arange(*chunks[chunk]))
        rows += len(windows[-1][-1])
    out = []
    for window in windows:
        ids = np.concatenate(window)
        out.append(ids[np.argsort(philox_bits64(seed, ROW_ORDER, epoch, ids), kind="stable")])
    return np.concatenate(out)


def batches(folder: str | Path, batch: int, steps: int, seed: int,
            window_rows: int) -> Iterator[np.ndarray]:
    """Global row numbers of each step's batch; the rows of a batch are a set."""
    chunks = chunk_ranges(folder)
    per_epoch = int(chunks[-1, 1]) // batch
    for step in range(steps):
        epoch, inside = divmod(step, per_epoch)
        if inside == 0:
            order = epoch_order(chunks, seed, epoch, window_rows)
        yield order[inside * batch:(inside + 1) * batch]
