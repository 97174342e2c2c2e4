"""Large arrays as folders of `.npy` shards: written in one pass, read through memory maps.

One sequence `name` of arrays with equal row shape is stored as `name-00000.npy`, `name-00001.npy`, …
Only one shard is mapped at a time, so that memory does not grow with the number of rows. Pickled arrays
are never read or written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Large enough that a data set is a few dozen files, small enough to map and to lose in a crash.
SHARD_BYTES = 32 * 2**20


class ShardWriter:
    """Appends rows of shape `row_shape` to the shards of `name`; a context manager.

    A shard appears under its name only when it is complete: a killed writer leaves whole shards and at
    most one `.partial` file.
    """

    def __init__(
        self, folder: Path, name: str, row_shape: tuple[int, ...], dtype: npt.DTypeLike, rows_per_shard: int = 0
    ) -> None:
        self._folder, self._name = folder, name
        self._row_shape, self._dtype = row_shape, np.dtype(dtype)
        row_bytes = int(np.prod(row_shape)) * self._dtype.itemsize
        self.rows_per_shard = rows_per_shard or max(1, SHARD_BYTES // max(1, row_bytes))
        self._pending: list[Array] = []
        self._pending_rows = 0
        self._shards = 0
        self.rows = 0
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, rows: Array) -> None:
        """Add `rows` (n × row shape)."""
        if rows.shape[1:] != self._row_shape:
            raise ValueError(f"rows of shape {self._row_shape} wanted. Received: {rows.shape[1:]}")
        while len(rows):
            taken = rows[: self.rows_per_shard - self._pending_rows]
            self._pending.append(np.array(taken, dtype=self._dtype))
            self._pending_rows += len(taken)
            self.rows += len(taken)
            rows = rows[len(taken) :]
            if self._pending_rows == self.rows_per_shard:
                self._flush()

    def close(self) -> None:
        """Write what is left; an empty sequence still gets one shard of zero rows."""
        if self._pending_rows or not self._shards:
            self._flush()

    def _flush(self) -> None:
        rows = np.concatenate(self._pending) if self._pending else np.empty((0, *self._row_shape), self._dtype)
        write(self._folder / f"{self._name}-{self._shards:05d}.npy", rows)
        self._pending, self._pending_rows = [], 0
        self._shards += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()


def write(path: Path, rows: Array) -> None:
    """Write one whole `.npy` file, visible under its name only when complete."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, rows, allow_pickle=False)
    partial.replace(path)


class ShardedArray:
    """The rows of all shards of `name` in `folder`, in order.

    Raises:
        FileNotFoundError: there is no such shard.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._paths = sorted(folder.glob(f"{name}-[0-9][0-9][0-9][0-9][0-9].npy"))
        if not self._paths:
            raise FileNotFoundError(f"{folder} holds no shards of {name}")
        heads = [np.load(path, mmap_mode="r", allow_pickle=False) for path in self._paths]
        self._starts = np.cumsum([0, *(len(head) for head in heads)])
        self._offset = heads[0].offset
        self.row_shape: tuple[int, ...] = heads[0].shape[1:]
        self.dtype = heads[0].dtype

    def __len__(self) -> int:
        return int(self._starts[-1])

    def blocks(self) -> Iterator[tuple[int, Array]]:
        """Each shard in turn with the index of its first row; a map that is dropped when the next is asked for."""
        for start, path in zip(self._starts, self._paths, strict=False):
            yield int(start), np.load(path, mmap_mode="r", allow_pickle=False)

    def batches(self, size: int) -> Iterator[Array]:
        """Consecutive copies of `size` rows, the last one shorter; rows may come from two shards."""
        rest: Array = np.empty((0, *self.row_shape), self.dtype)
        for _, block in self.blocks():
            first = min(size - len(rest), len(block)) if len(rest) else 0
            if first:
                rest = np.concatenate([rest, block[:first]])
                if len(rest) < size:
                    continue
                yield rest
                rest = rest[:0]
            for start in range(first, len(block), size):
                piece = np.array(block[start : start + size])
                if len(piece) == size:
                    yield piece
                else:
                    rest = piece
        if len(rest):
            yield rest

    def take(self, indices: Array) -> Array:
        """Copies of the rows at `indices`, in that order.

        Read row by row: a batch drawn from all shards would map each of them for a few rows.
        """
        out = np.empty((len(indices), *self.row_shape), self.dtype)
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        for shard in np.unique(shards):
            positions = np.flatnonzero(shards == shard)
            with self._paths[shard].open("rb", buffering=0) as file:
                for position, row in zip(positions, indices[positions] - self._starts[shard], strict=True):
                    file.seek(self._offset + int(row) * out[position].nbytes)
                    file.readinto(out[position].data)
        return out

    def read(self) -> Array:
        """All rows in memory: for labels and other narrow arrays."""
        return np.concatenate([np.array(block) for _, block in self.blocks()])
