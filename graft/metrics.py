"""How good predictions are: scores with their uncertainty, from probabilities and true labels.

In: `probabilities` (N×C float, rows sum to 1) and `labels` (N int, 0 to C-1). Out: plain numbers and small
frozen records. What cannot be known from the pictures at hand is None, never a warning or a guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.errors import GraftError, InputError

Array = npt.NDArray[Any]

CALIBRATION_BINS = 15  # as in Guo et al. 2017
TOP5_CLASSES = 20  # with fewer classes a blind guess is among the first five more than one time in four
ROW_SUM_TOLERANCE = 0.01  # half precision rounds each of many probabilities
# Single precision's own: a smaller probability cannot be told from none, and its logarithm would rule the mean.
SMALLEST_PROBABILITY = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Interval:
    """A share `value` and the bounds of its confidence interval, all 0 to 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Scores:
    """Precision, recall and F1, each 0 to 1."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ClassScores:
    """One class against all others; a score that the test pictures leave open is None."""

    name: str
    images: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None
    roc_auc: float | None
    average_precision: float | None


@dataclass(frozen=True)
class Bin:
    """The pictures whose confidence lies in (`low`, `high`]: their mean confidence and their accuracy."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class PairedTest:
    """Two classifiers a and b on the same pictures: is b better?

    `difference` is accuracy of b minus accuracy of a, with its 95 % interval; `p_value` is McNemar's two-sided
    mid-p test; `only_a` and `only_b` count the pictures that one alone got right.
    """

    images: int
    only_a: int
    only_b: int
    difference: float
    low: float
    high: float
    p_value: float


def check(probabilities: Array, labels: Array, classes: Sequence[str]) -> None:
    """See that there is something to measure and that it is sound.

    Raises:
        InputError: no pictures, or a label that names no class.
        GraftError: probabilities of the wrong shape, not finite, or not adding up to 1.
    """
    if len(labels) == 0:
        raise InputError(
            "the test set is empty, so nothing can be measured; raise data.test_fraction. Received: 0 images"
        )
    if labels.min() < 0 or labels.max() >= len(classes):
        raise InputError(
            f"the test labels must lie between 0 and {len(classes) - 1}, one for each class of the model; "
            f"run the export stage again. Received: {int(labels.min())} to {int(labels.max())}"
        )
    if probabilities.shape != (len(labels), len(classes)):
        raise GraftError(
            f"the model must give {len(classes)} probabilities for each of {len(labels)} images; "
            f"run the export stage again. Received: an array of shape {probabilities.shape}"
        )
    broken = ~np.isfinite(probabilities).all(axis=1)
    if broken.any():
        raise GraftError(
            f"the model gives probabilities that are not numbers for {int(broken.sum())} of {len(labels)} images "
            f"(the first is number {int(broken.argmax())}); train again at a lower learning rate. "
            "Received: NaN or infinity"
        )
    off = float(np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1).max())
    if off > ROW_SUM_TOLERANCE or probabilities.min() < 0:
        raise GraftError(
            "the model's probabilities must be at least 0 and add up to 1 for each image; export a model that ends "
            f"in a softmax. Received: a smallest value of {probabilities.min():.3g} and sums off by up to {off:.3g}"
        )


def wilson(successes: int, total: int, confidence: float = 0.95) -> Interval:
    """The share of `successes` with Wilson's score interval (Wilson 1927), sound for small and extreme counts."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return Interval(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def accuracy(probabilities: Array, labels: Array) -> Interval:
    """Share of pictures whose most probable class is the true one."""
    return wilson(int((probabilities.argmax(axis=1) == labels).sum()), len(labels))


def top_k(probabilities: Array, labels: Array, k: int) -> float:
    """Share of pictures whose true class is among the `k` most probable; ties count for the lower class number."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return float((order == labels[:, None]).any(axis=1).mean())


def confusion(predicted: Array, labels: Array, classes: int) -> Array:
    """C×C int64 counts: rows are true classes, columns predicted ones."""
    counts = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def per_class(probabilities: Array, labels: Array, names: Sequence[str]) -> list[ClassScores]:
    """Each class against the rest.

    A class without test pictures has no recall, F1, ROC or average precision. One that has pictures and is
    never predicted has a precision of 0, as scikit-learn has it.
    """
    counts = confusion(probabilities.argmax(axis=1), labels, len(names))
    scores = []
    for index, name in enumerate(names):
        hits, images, predicted = (
            int(counts[index, index]),
            int(counts[index].sum()),
            int(counts[:, index].sum()),
        )
        precision = hits / predicted if predicted else (0.0 if images else None)
        known = images > 0
        scores.append(
            ClassScores(
                name=name,
                images=images,
                predicted=predicted,
                precision=precision,
                recall=hits / images if known else None,
                f1=2 * hits / (images + predicted) if known else None,
                roc_auc=_roc_auc(probabilities[:, index], labels == index),
                average_precision=_average_precision(probabilities[:, index], labels == index),
            )
        )
    return scores


def averages(scores: Sequence[ClassScores]) -> tuple[Scores, Scores]:
    """Macro and weighted means over the classes that have test pictures (weights: their number of pictures)."""
    present = [score for score in scores if score.images]
    values = np.array([[score.precision, score.recall, score.f1] for score in present], dtype=np.float64)
    weights = np.array([score.images for score in present], dtype=np.float64)
    macro, weighted = values.mean(axis=0), np.average(values, axis=0, weights=weights)
    return Scores(*map(float, macro)), Scores(*map(float, weighted))


def mean_known(values: Sequence[float | None]) -> float | None:
    """The mean of what is known, None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def log_loss(probabilities: Array, labels: Array) -> float:
    """Mean negative logarithm of the true class's probability (nats), clipped at single precision's epsilon."""
    true = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    total = probabilities.sum(axis=1, dtype=np.float64)
    return float(-np.log(np.clip(true / total, SMALLEST_PROBABILITY, 1)).mean())


def brier(probabilities: Array, labels: Array) -> float:
    """Mean squared distance between probabilities and truth over all classes (Brier 1950), 0 to 2."""
    distance = probabilities.astype(np.float64)
    distance[np.arange(len(labels)), labels] -= 1
    return float((distance**2).sum(axis=1).mean())


def reliability(probabilities: Array, labels: Array, bins: int = CALIBRATION_BINS) -> list[Bin]:
    """Accuracy against confidence in `bins` equal steps of the top probability; empty steps left out."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    number = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for index in np.unique(number):
        inside = number == index
        found.append(
            Bin(
                low=index / bins,
                high=(index + 1) / bins,
                images=int(inside.sum()),
                confidence=float(confidence[inside].mean()),
                accuracy=float(correct[inside].mean()),
            )
        )
    return found


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean gap between confidence and accuracy, weighted by pictures (Naeini et al. 2015), 0 to 1."""
    total = sum(item.images for item in bins)
    return sum(item.images * abs(item.confidence - item.accuracy) for item in bins) / total


def roc(scores: Array, positive: Array) -> tuple[Array, Array] | None:
    """False and true positive rates of one class at falling thresholds; None without both kinds of pictures."""
    if not _both(positive):
        return None
    from sklearn.metrics import roc_curve

    false_rate, true_rate, _ = roc_curve(positive, scores)
    return false_rate, true_rate


def mcnemar(correct_a: Array, correct_b: Array) -> PairedTest:
    """Compare two classifiers by which of the same pictures each got right (boolean, N each).

    The p-value is McNemar's mid-p (binomial on the pictures where they differ), the interval of the difference
    Bonett and Price's (2012): the pair that Fagerland, Lydersen and Laake (2013) advise, for small counts too.

    Raises:
        InputError: the two do not judge the same number of pictures, or there are none.
    """
    if len(correct_a) != len(correct_b) or len(correct_a) == 0:
        raise InputError(
            f"a paired test needs the same pictures for both models. Received: {len(correct_a)} and {len(correct_b)}"
        )
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    images, only_a, only_b = len(a), int((a & ~b).sum()), int((b & ~a).sum())
    lost, won = (only_a + 1) / (images + 2), (only_b + 1) / (images + 2)
    half = NormalDist().inv_cdf(0.975) * math.sqrt((lost + won - (won - lost) ** 2) / (images + 2))
    return PairedTest(
        images=images,
        only_a=only_a,
        only_b=only_b,
        difference=(only_b - only_a) / images,
        low=max(-1.0, won - lost - half),
        high=min(1.0, won - lost + half),
        p_value=_sign_test(only_a, only_b),
    )


def _sign_test(losses: int, wins: int) -> float:
    if losses + wins == 0:
        return 1.0
    from scipy.special import bdtr

    # What is more extreme counts in full, what is as extreme by half: the exact test's sum is needlessly cautious.
    fewer, total = min(losses, wins), losses + wins
    below = float(bdtr(fewer - 1, total, 0.5)) if fewer else 0.0
    return min(1.0, below + float(bdtr(fewer, total, 0.5)))


def _both(positive: Array) -> bool:
    return bool(positive.any() and not positive.all())


def _roc_auc(scores: Array, positive: Array) -> float | None:
    if not _both(positive):
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, scores))


def _average_precision(scores: Array, positive: Array) -> float | None:
    if not _both(positive):
        return None
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(positive, scores))
