"""Test pictures that training saw almost unchanged: recompressed, resized a little, brightened or mirrored.

Exact copies are `prepare`'s business. Compared are all pairs across splits: first by small grey thumbnails,
then, where those agree, by all pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
BLOCK = 2048  # pictures of either side at once, so that memory does not grow with the splits


@dataclass(frozen=True)
class Pair:
    """Test picture `test` and picture `other` of `split` correlate by `similarity` (at most 1)."""

    test: int
    split: str
    other: int
    similarity: float
    mirrored: bool


def pairs(test: ShardedArray, others: Mapping[str, ShardedArray], least: float) -> list[Pair]:
    """For each picture of `test` its likest one among `others` (by split), if they correlate by `least` or more.

    Likest first. Correlation is over all pixels and channels after taking away each picture's mean and scale, so
    brightness and contrast do not hide a copy. A plain picture of one colour is like none, and a pair no closer
    than many others is none.
    """
    plain = np.concatenate([_thumbnails(batch) for batch in test.batches(BLOCK)])
    sought = np.concatenate([plain, _mirrored(plain)])  # row N + i is test picture i seen in a mirror
    best = {split: _nearest(sought, other) for split, other in others.items()}
    likest = np.max([likeness for likeness, _ in best.values()], axis=0)
    rows = np.flatnonzero(likest >= least - SLACK)
    rows = rows[_stands_out(sought[rows], likest[rows], others.values())]
    found: dict[int, Pair] = {}
    for split, (likeness, index) in best.items():
        mine = rows[likeness[rows] == likest[rows]]
        for pair in _exact(test, others[split], split, mine, index[mine]):
            if pair.similarity >= least and pair.similarity > _similarity(found.get(pair.test)):
                found[pair.test] = pair
    return sorted(found.values(), key=lambda pair: (-pair.similarity, pair.test))


def _similarity(pair: Pair | None) -> float:
    return pair.similarity if pair else -1.0


def _exact(test: ShardedArray, other: ShardedArray, split: str, rows: Array, index: Array) -> Iterator[Pair]:
    """Pairs of the `rows` sought and the pictures at `index`, compared by all their pixels."""
    for start in range(0, len(rows), BLOCK):
        turn, own = np.divmod(rows[start : start + BLOCK], len(test))
        twins = index[start : start + BLOCK]
        pictures, mirrored = test.take(own), turn == 1
        pictures[mirrored] = pictures[mirrored][:, :, ::-1]
        similarities = _correlation(pictures, other.take(twins))
        for row, twin, similarity, mirror in zip(own, twins, similarities, mirrored, strict=True):
            yield Pair(int(row), split, int(twin), float(similarity), bool(mirror))


def _nearest(sought: Array, other: ShardedArray) -> tuple[Array, Array]:
    """For each row of `sought` the likeness and index of the likest thumbnail in `other`."""
    likeness = np.full(len(sought), -1.0, dtype=np.float32)
    index = np.zeros(len(sought), dtype=np.int64)
    for first, part, product in _products(sought, other):
        columns = product.argmax(axis=1)
        value = product[np.arange(len(product)), columns]
        better = value > likeness[part]
        likeness[part][better], index[part][better] = value[better], first + columns[better]
    return likeness, index


def _stands_out(sought: Array, likest: Array, others: Iterable[ShardedArray]) -> Array:
    """Which rows of `sought` are so near to their likest thumbnail that `STANDS_OUT` holds, N booleans."""
    # The tenth neighbour is far enough away if fewer than ten are nearer: counting spares sorting.
    bound = 1 - (1 - likest) / STANDS_OUT
    nearer = np.zeros(len(sought), dtype=np.int64)
    for other in others:
        for _, part, product in _products(sought, other):
            nearer[part] += np.count_nonzero(product > bound[part, None], axis=1)
    return np.asarray(nearer < NEIGHBOURS)


def _products(sought: Array, other: ShardedArray) -> Iterator[tuple[int, slice, Array]]:
    """Likeness of rows of `sought` (a slice) to a block of `other` (from its first row on), block by block."""
    first = 0
    for pictures in other.batches(BLOCK):
        thumbnails = _thumbnails(pictures)
        for start in range(0, len(sought), BLOCK):
            part = slice(start, start + BLOCK)
            yield first, part, sought[part] @ thumbnails.T
        first += len(thumbnails)


def _thumbnails(pictures: Array) -> Array:
    """N×64 float32 rows of mean 0 and length 1: the grey cells of each picture."""
    count, height, width, _ = pictures.shape
    rows = np.linspace(0, height, THUMBNAIL + 1).astype(int)[:-1]
    columns = np.linspace(0, width, THUMBNAIL + 1).astype(int)[:-1]
    grey = pictures.astype(np.float32).sum(axis=3)
    cells = np.add.reduceat(np.add.reduceat(grey, rows, axis=1), columns, axis=2)
    return _unit(cells.reshape(count, -1))


def _mirrored(thumbnails: Array) -> Array:
    return np.ascontiguousarray(thumbnails.reshape(-1, THUMBNAIL, THUMBNAIL)[:, :, ::-1].reshape(len(thumbnails), -1))


def _correlation(a: Array, b: Array) -> Array:
    flat_a, flat_b = (_unit(x.reshape(len(x), -1).astype(np.float32)) for x in (a, b))
    return np.asarray((flat_a * flat_b).sum(axis=1))


def _unit(rows: Array) -> Array:
    rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.where(length > 1e-6, rows / np.maximum(length, 1e-6), 0.0), dtype=np.float32)
