"""Pictures whose label is probably wrong, by confident learning (Northcutt, Jiang and Chuang 2021).

In: probabilities from a model that never saw the pictures, and their labels. Out: suspects, worst first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

FOLDS = 5
LEAST_MARGIN = 0.5  # below it a doubt is more likely the model's than the label's
SHRINKAGE = 0.05  # of the covariance


@dataclass(frozen=True)
class Suspect:
    """Picture `index` is labelled `label`; `suggested` is `margin` (0 to 1) more probable."""

    index: int
    label: int
    suggested: int
    probability: float
    margin: float


def suspects(probabilities: Array, labels: Array) -> list[Suspect]:
    """Pictures that clear another class's own mean confidence, and their label's by far.

    That is the confident joint off its diagonal, less the cases that a weak model would swamp it with.

    `probabilities` (N×C) must be out of sample. Sorted by margin: probability of the suggested class less that
    of the label.
    """
    classes = probabilities.shape[1]
    thresholds = np.array(
        [
            probabilities[labels == index, index].mean() if (labels == index).any() else np.inf
            for index in range(classes)
        ]
    )
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    suggested = confident.argmax(axis=1)
    own = probabilities[np.arange(len(labels)), labels]
    margin = confident.max(axis=1) - own
    wrong = np.flatnonzero((suggested != labels) & (margin >= LEAST_MARGIN))
    order = wrong[np.argsort(-margin[wrong], kind="stable")]
    return [
        Suspect(int(i), int(labels[i]), int(suggested[i]), float(probabilities[i, suggested[i]]), float(margin[i]))
        for i in order
    ]


def out_of_fold(rows: Array, labels: Array, classes: int) -> Array:
    """N×C probabilities for narrow `rows` (N×k), each from a linear discriminant fitted without that row's fold."""
    probabilities = np.zeros((len(labels), classes))
    fold = _folds(labels)
    for number in range(FOLDS):
        held, kept = fold == number, fold != number
        if not held.any():
            continue
        seen = np.unique(labels[kept])
        probabilities[np.ix_(held, seen)] = _discriminant(rows[kept], labels[kept], seen, rows[held])
    return probabilities


def _discriminant(rows: Array, labels: Array, seen: Array, held: Array) -> Array:
    """Probabilities of the classes `seen` for the rows `held`: normal distributions that share one covariance."""
    means = np.stack([rows[labels == label].mean(axis=0, dtype=np.float64) for label in seen])
    counts = np.array([(labels == label).sum() for label in seen])
    rest = rows - means[np.searchsorted(seen, labels)]
    covariance = rest.T @ rest / len(rows)
    width = len(covariance)
    # Shrunk towards a multiple of the unit matrix, so that few rows or equal ones leave it invertible.
    level = max(float(np.trace(covariance)) / width, 1e-9)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * level * np.eye(width)
    weights = np.linalg.solve(covariance, means.T)
    logits = held @ weights - 0.5 * (means.T * weights).sum(axis=0) + np.log(counts / counts.sum())
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))


def _folds(labels: Array) -> Array:
    """A fold number for each row: each class dealt out in turn, so that every fold has its share."""
    fold = np.empty(len(labels), dtype=int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        fold[members] = np.arange(len(members)) % FOLDS
    return fold
