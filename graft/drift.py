"""Whether what is served still looks like what the model was judged on.

In: two sums of traffic (`graft.traffic`): the test pictures at registration, and what servers were asked since.
Out: the population stability index of classes and of confidence, and a two-sample test of picture features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.params import Retrain
from graft.traffic import FEATURES, Traffic

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Drift:
    """The distances, and in `alarms` a sentence for each that is over its threshold."""

    images: int
    psi_classes: float
    psi_confidence: float
    feature_p: dict[str, float]
    alarms: tuple[str, ...]


def look(reference: Traffic, served: Traffic, limits: Retrain) -> Drift | None:
    """Compare; None where too little was served to speak of drift (`retrain.drift_images`)."""
    if served.images < limits.drift_images or served.classes != reference.classes:
        return None
    classes = psi(reference.class_counts, served.class_counts)
    confidence = psi(reference.confidence, served.confidence)
    p_values = {
        name: two_sample(reference.feature_counts[row], served.feature_counts[row]) for row, name in enumerate(FEATURES)
    }
    alarms = [
        f"the {what} moved: PSI {value:.2f}, alarm from {limits.max_psi} (retrain.max_psi)"
        for what, value in (("classes answered", classes), ("confidence", confidence))
        if value > limits.max_psi
    ]
    # Five tests at once: each must be five times as sure (Bonferroni).
    moved = [name for name, p in p_values.items() if p < limits.min_drift_p / len(FEATURES)]
    if moved:
        alarms.append(
            f"the pictures look different in {', '.join(moved)}: p = {min(p_values.values()):.1g} (retrain.min_drift_p)"
        )
    return Drift(served.images, classes, confidence, p_values, tuple(alarms))


def psi(expected: Array, observed: Array) -> float:
    """The population stability index of two rows of counts: Σ (o − e) · ln(o / e) of their shares.

    Half a count is added everywhere, so that an empty bin is unlikely, not impossible.
    """
    before, now = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (expected, observed))
    return float(((now - before) * np.log(now / before)).sum())


def two_sample(before: Array, now: Array) -> float:
    """The p-value of the Kolmogorov–Smirnov test on two histograms of the same bins.

    Values within a bin count as ties, which makes the test careful, never rash.
    """
    from scipy.stats import kstwobign

    n, m = int(before.sum()), int(now.sum())
    if not n or not m:
        return 1.0
    distance = np.abs(before.cumsum() / n - now.cumsum() / m).max()
    return float(kstwobign.sf(distance * np.sqrt(n * m / (n + m))))


def total(classes: Iterable[str], sums: Iterable[Traffic]) -> Traffic:
    """All sums of these classes together; others are of another model and left out."""
    found = Traffic(list(classes))
    for part in sums:
        if part.classes == found.classes:
            found.merge(part)
    return found
