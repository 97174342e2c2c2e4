"""Test pictures that training saw almost unchanged: recompressed, resized a little, brightened or mirrored.

Exact copies are `prepare`'s business. Compared are all pairs across splits: first by small grey thumbnails,
then, where those agree, by all pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.shards import ShardedArray

Array = npt.NDArray[Any]

THUMBNAIL = 8  # cells a side
SLACK = 0.05  # by which a thumbnail may agree less than the picture
# Simple pictures, such as strokes, are all alike. A copy is much nearer than the others: its squared distance is at
# most this share of that to the tenth neighbour (tenth, so that a handful of copies do not hide each other).
STANDS_OUT = 0.25
NEIGHBOURS = 10
BLOCK = 1024  # pictures at once, so that memory does not grow with the training split


@dataclass(frozen=True)
class Pair:
    """Test picture `test` and picture `other` of the other split correlate by `similarity` (at most 1)."""

    test: int
    other: int
    similarity: float
    mirrored: bool


def pairs(test: ShardedArray, other: ShardedArray, least: float) -> list[Pair]:
    """For each picture of `test` its likest picture in `other`, if they correlate by `least` or more; likest first.

    Correlation is over all pixels and channels after taking away each picture's mean and scale, so brightness and
    contrast do not hide a copy. A plain picture of one colour is like none, and a pair no closer than many others
    is none.
    """
    plain = np.concatenate([_thumbnails(batch) for batch in test.batches(BLOCK)])
    best = [_nearest(plain, other, mirror) for mirror in (False, True)]
    found: dict[int, Pair] = {}
    for mirrored, (likeness, index) in zip((False, True), best, strict=True):
        rows = np.flatnonzero(likeness >= least - SLACK)
        rows = rows[1 - likeness[rows] <= STANDS_OUT * (1 - _tenth(plain[rows], other, mirrored))]
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]
            exact = _correlation(test.take(part), other.take(index[part]), mirrored)
            for row, similarity in zip(part, exact, strict=True):
                pair = Pair(int(row), int(index[row]), float(similarity), mirrored)
                if similarity >= least and (
                    pair.test not in found or found[pair.test].similarity < similarity
                ):
                    found[pair.test] = pair
    return sorted(found.values(), key=lambda pair: (-pair.similarity, pair.test))


def _nearest(plain: Array, other: ShardedArray, mirror: bool) -> tuple[Array, Array]:
    """For each row of `plain` the likeness and index of the likest thumbnail in `other`."""
    likeness = np.full(len(plain), -1.0, dtype=np.float32)
    index = np.zeros(len(plain), dtype=np.int64)
    first = 0
    for batch in other.batches(BLOCK):
        thumbnails = _thumbnails(batch[:, :, ::-1] if mirror else batch)
        product = plain @ thumbnails.T
        columns = product.argmax(axis=1)
        value = product[np.arange(len(plain)), columns]
        better = value > likeness
        likeness[better], index[better] = value[better], first + columns[better]
        first += len(batch)
    return likeness, index


def _tenth(plain: Array, other: ShardedArray, mirror: bool) -> Array:
    """For each row of `plain` the likeness of its `NEIGHBOURS`-th likest thumbnail in `other`; -1 if there are fewer."""
    best = np.full((len(plain), NEIGHBOURS), -1.0, dtype=np.float32)
    for batch in other.batches(BLOCK):
        product = plain @ _thumbnails(batch[:, :, ::-1] if mirror else batch).T
        best = np.sort(np.concatenate([best, product], axis=1), axis=1)[:, -NEIGHBOURS:]
    return best[:, 0]


def _thumbnails(pictures: Array) -> Array:
    """N×64 float32 rows of mean 0 and length 1: the grey cells of each picture."""
    count, height, width, _ = pictures.shape
    rows = np.linspace(0, height, THUMBNAIL + 1).astype(int)[:-1]
    columns = np.linspace(0, width, THUMBNAIL + 1).astype(int)[:-1]
    grey = pictures.astype(np.float32).sum(axis=3)
    cells = np.add.reduceat(np.add.reduceat(grey, rows, axis=1), columns, axis=2)
    return _unit(cells.reshape(count, -1))


def _correlation(a: Array, b: Array, mirrored: bool) -> Array:
    b = b[:, :, ::-1] if mirrored else b
    flat_a, flat_b = (_unit(x.reshape(len(x), -1).astype(np.float32)) for x in (a, b))
    return np.asarray((flat_a * flat_b).sum(axis=1))


def _unit(rows: Array) -> Array:
    rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.where(length > 1e-6, rows / np.maximum(length, 1e-6), 0.0), dtype=np.float32)
