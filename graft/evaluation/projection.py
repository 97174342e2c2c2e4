"""Wide rows made narrow: principal components fitted on a sample, applied in batches, and a map of two dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from graft.shards import ShardedArray

Array = npt.NDArray[Any]

SAMPLE = 600  # rows that the components are fitted on
BATCH = 1024
NEIGHBOURS = 30.0  # t-SNE's perplexity: its authors advise 5 to 50


@dataclass(frozen=True)
class Components:
    """`mean` (D), `axes` (D×k, orthonormal) and `scale` (k, the sample's deviation along each)."""

    mean: Array
    axes: Array
    scale: Array

    def apply(self, rows: Array) -> Array:
        """N×k float32: `rows` (N×…) along the axes, each with unit deviation."""
        flat = rows.reshape(len(rows), -1).astype(np.float32)
        return np.asarray((flat - self.mean) @ self.axes / self.scale, dtype=np.float32)


def principal_components(rows: Array, count: int) -> Components:
    """The first `count` components (fewer where the rows have no more) of `rows` (n×…), n at most a few thousand.

    Worked out from the n×n products of the rows, so that the width of a row hardly matters.
    """
    from scipy.linalg import eigh

    flat = rows.reshape(len(rows), -1).astype(np.float32)
    mean = flat.mean(axis=0)
    flat -= mean
    products = (flat @ flat.T).astype(np.float64)
    values, vectors = eigh(products, subset_by_index=[max(0, len(flat) - count), len(flat) - 1])
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = values > max(values[0], 1e-12) * 1e-6
    values, vectors = values[kept], vectors[:, kept]
    lengths = np.sqrt(values)
    axes = (flat.T @ vectors.astype(np.float32)) / lengths.astype(np.float32)
    return Components(mean, axes, (lengths / np.sqrt(max(1, len(flat) - 1))).astype(np.float32))


def project(array: ShardedArray, rows: int, count: int, seed: int) -> Array:
    """The first `rows` rows of `array` along their `count` principal components, `rows`×k float32."""
    sample = np.sort(np.random.default_rng(seed).permutation(rows)[:SAMPLE])
    components = principal_components(array.take(sample), count)
    batches = (
        components.apply(array.take(np.arange(start, min(start + BATCH, rows)))) for start in range(0, rows, BATCH)
    )
    return np.concatenate(list(batches))


def flat_map(rows: Array, method: Literal["pca", "tsne"], seed: int) -> Array:
    """n×2 positions in -1 to 1 of `rows` (n×…): neighbours stay neighbours.

    Few rows cannot be spread by t-SNE; they are laid out by their principal components.
    """
    components = principal_components(rows, 50 if method == "tsne" else 2)
    narrow = components.apply(rows) * components.scale  # true lengths: loud axes count for more
    if narrow.shape[1] < 2:
        narrow = np.pad(narrow, ((0, 0), (0, 2 - narrow.shape[1])))
    if method == "tsne" and len(rows) > 3 * NEIGHBOURS:
        narrow = _tsne(narrow, seed)
        narrow = narrow / np.ptp(narrow, axis=0)  # lengths mean nothing after t-SNE: let both axes fill the map
    flat = narrow[:, :2] - (narrow[:, :2].max(axis=0) + narrow[:, :2].min(axis=0)) / 2
    return np.asarray(flat / max(float(np.abs(flat).max()), 1e-12))


def _tsne(rows: Array, seed: int) -> Array:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    # One thread: sums of several come in any order, and the same run would not give the same map.
    with threadpool_limits(1):
        tsne = TSNE(perplexity=NEIGHBOURS, init="pca", learning_rate="auto", random_state=seed, n_jobs=1, max_iter=500)
        return np.asarray(tsne.fit_transform(rows), dtype=np.float64)
