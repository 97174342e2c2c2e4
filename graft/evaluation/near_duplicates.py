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
BLOCK = 1024  # pictures at once, so that memory does not grow with the training split


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
    found: dict[int, Pair] = {}
    for mirrored in (False, True):
        best = {split: _nearest(plain, other, mirrored) for split, other in others.items()}
        likest = np.max([likeness for likeness, _ in best.values()], axis=0)
        rows = np.flatnonzero(likest >= least - SLACK)
        rows = rows[1 - likest[rows] <= STANDS_OUT * (1 - _tenth(plain[rows], others.values(), mirrored))]
        for split, (likeness, index) in best.items():
            mine = rows[likeness[rows] == likest[rows]]
            for pair in _exact(test, others[split], split, mine, index[mine], mirrored):
                if pair.similarity >= least and pair.similarity > _similarity(found.get(pair.test)):
                    found[pair.test] = pair
    return sorted(found.values(), key=lambda pair: (-pair.similarity, pair.test))


def _similarity(pair: Pair | None) -> float:
    return pair.similarity if pair else -1.0


def _exact(
    test: ShardedArray, other: ShardedArray, split: str, rows: Array, index: Array, mirrored: bool
) -> Iterator[Pair]:
    """Pairs of test `rows` and the pictures at `index`, compared by all their pixels."""
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        similarities = _correlation(test.take(rows[part]), other.take(index[part]), mirrored)
        for row, twin, similarity in zip(rows[part], index[part], similarities, strict=True):
            yield Pair(int(row), split, int(twin), float(similarity), mirrored)


def _nearest(plain: Array, other: ShardedArray, mirror: bool) -> tuple[Array, Array]:
    """For each row of `plain` the likeness and index of the likest thumbnail in `other`."""
    likeness = np.full(len(plain), -1.0, dtype=np.float32)
    index = np.zeros(len(plain), dtype=np.int64)
    first = 0
    for thumbnails in _blocks(other, mirror):
        product = plain @ thumbnails.T
        columns = product.argmax(axis=1)
        value = product[np.arange(len(plain)), columns]
        better = value > likeness
        likeness[better], index[better] = value[better], first + columns[better]
        first += len(thumbnails)
    return likeness, index


def _tenth(plain: Array, others: Iterable[ShardedArray], mirror: bool) -> Array:
    """For each row of `plain` the likeness of its `NEIGHBOURS`-th likest thumbnail; -1 if there are fewer."""
    best = np.full((len(plain), NEIGHBOURS), -1.0, dtype=np.float32)
    for other in others:
        for thumbnails in _blocks(other, mirror):
            best = np.sort(np.concatenate([best, plain @ thumbnails.T], axis=1), axis=1)[:, -NEIGHBOURS:]
    return best[:, 0]


def _blocks(pictures: ShardedArray, mirror: bool) -> Iterator[Array]:
    for batch in pictures.batches(BLOCK):
        yield _thumbnails(batch[:, :, ::-1] if mirror else batch)


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
