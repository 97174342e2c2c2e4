"""Accuracy on pictures made worse on purpose, in the manner of CIFAR-10-C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.evaluation.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from graft.metrics import Interval, accuracy
from graft.progress import Meter

Array = npt.NDArray[Any]
Predict = Callable[[Array], Array]


def stratified(labels: Array, count: int, seed: int) -> Array:
    """`count` indices (or all, if there are fewer), sorted, drawn so that each class keeps its share."""
    if count >= len(labels):
        return np.arange(len(labels))
    draws = np.random.default_rng(seed)
    shuffled = draws.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    # Equal steps along the pictures sorted by class: shares hold to within one picture.
    steps = (np.arange(count) * len(labels) / count).astype(int)
    return np.sort(by_class[steps])


def curves(predict: Predict, pictures: Array, labels: Array, seed: int) -> dict[str, list[Interval]]:
    """For each corruption the accuracy at strengths 1 to 5, all on the same `pictures` (N×H×W×3 uint8)."""
    meter = Meter("corruptions", len(CORRUPTIONS) * STRENGTHS * len(pictures))
    found: dict[str, list[Interval]] = {}
    for name in CORRUPTIONS:
        found[name] = []
        for strength in range(1, STRENGTHS + 1):
            found[name].append(accuracy(predict(corrupt(pictures, name, strength, seed)), labels))
            meter.advance(len(pictures), name)
    return found
