"""Every score against scikit-learn or a case worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as reference

from graft import metrics
from graft.errors import GraftError, InputError

NAMES = ["cat", "dog", "bird", "fish"]


@pytest.fixture
def judged() -> tuple[np.ndarray, np.ndarray]:
    """500 pictures of three of four classes, judged by a network that is right about two times in three."""
    draws = np.random.default_rng(3)
    labels = draws.integers(0, 3, 500)
    logits = draws.normal(size=(500, 4)) + 2 * np.eye(4)[labels]
    exponents = np.exp(logits)
    return (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32), labels


def test_accuracy_and_its_interval_are_scikit_learns_and_scipys(
    judged: tuple[np.ndarray, np.ndarray],
) -> None:
    probabilities, labels = judged
    found = metrics.accuracy(probabilities, labels)
    assert found.value == pytest.approx(reference.accuracy_score(labels, probabilities.argmax(axis=1)))
    wanted = binomtest(round(found.value * 500), 500).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


@pytest.mark.parametrize(("right", "total"), [(0, 1), (1, 1), (0, 10), (10, 10), (3, 7)])
def test_the_interval_stays_within_zero_and_one(right: int, total: int) -> None:
    found = metrics.wilson(right, total)
    wanted = binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_top_k_is_scikit_learns(judged: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = judged
    for k in (1, 2, 3):
        wanted = reference.top_k_accuracy_score(labels, probabilities, k=k, labels=range(4))
        assert metrics.top_k(probabilities, labels, k) == pytest.approx(wanted)


def test_the_confusion_matrix_is_scikit_learns(judged: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = judged
    predicted = probabilities.argmax(axis=1)
    wanted = reference.confusion_matrix(labels, predicted, labels=range(4))
    assert metrics.confusion(predicted, labels, 4).tolist() == wanted.tolist()


def test_scores_of_each_class_and_their_means_are_scikit_learns(
    judged: tuple[np.ndarray, np.ndarray],
) -> None:
    probabilities, labels = judged
    predicted = probabilities.argmax(axis=1)
    found = metrics.per_class(probabilities, labels, NAMES)
    wanted = reference.precision_recall_fscore_support(labels, predicted, labels=range(3), zero_division=0)
    assert [[row.precision, row.recall, row.f1, row.images] for row in found[:3]] == np.array(wanted).T.tolist()
    for row in found[:3]:
        one = (labels == NAMES.index(row.name)).astype(int)
        scores = probabilities[:, NAMES.index(row.name)]
        assert row.roc_auc == pytest.approx(reference.roc_auc_score(one, scores))
        assert row.average_precision == pytest.approx(reference.average_precision_score(one, scores))
    for mean, kind in zip(metrics.averages(found), ("macro", "weighted"), strict=True):
        wanted_mean = reference.precision_recall_fscore_support(
            labels, predicted, labels=range(3), average=kind, zero_division=0
        )[:3]
        assert (mean.precision, mean.recall, mean.f1) == pytest.approx(wanted_mean)


def test_a_class_without_pictures_has_no_score_and_counts_in_no_mean(
    judged: tuple[np.ndarray, np.ndarray],
) -> None:
    found = metrics.per_class(*judged, NAMES)[3]
    assert found.images == 0
    assert found.predicted > 0
    assert (found.recall, found.f1, found.roc_auc, found.average_precision) == (None, None, None, None)
    assert metrics.mean_known([0.5, None, 1.0]) == 0.75
    assert metrics.mean_known([None]) is None


def test_roc_and_average_precision_of_a_case_done_by_hand() -> None:
    scores, positive = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    curve = metrics.roc(scores, positive)
    assert curve is not None
    assert curve[0].tolist() == [0, 0, 0.5, 0.5, 1]
    assert curve[1].tolist() == [0, 0.5, 0.5, 1, 1]
    probabilities = np.stack([scores, 1 - scores], axis=1)
    row = metrics.per_class(probabilities, np.where(positive, 0, 1), ["yes", "no"])[0]
    assert row.roc_auc == pytest.approx(0.75)  # three of four pairs in the right order
    assert row.average_precision == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_log_loss_and_brier_score_are_scikit_learns(judged: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = judged
    wide = probabilities.astype(np.float64)
    wide /= wide.sum(axis=1, keepdims=True)
    assert metrics.log_loss(probabilities, labels) == pytest.approx(reference.log_loss(labels, wide, labels=range(4)))
    assert metrics.brier(probabilities, labels) == pytest.approx(
        reference.brier_score_loss(labels, wide, labels=range(4)), rel=1e-5
    )


def test_log_loss_of_a_certain_mistake_is_large_and_finite() -> None:
    certain = np.array([[0.0, 1.0]], np.float32)
    assert metrics.log_loss(certain, np.array([0])) == pytest.approx(-math.log(np.finfo(np.float32).eps))


def test_calibration_error_of_a_case_done_by_hand() -> None:
    # Two pictures at 0.95, one right; two at 0.55, both right: gaps of 0.45 each.
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.55, 0.45], [0.55, 0.45]])
    bins = metrics.reliability(probabilities, np.array([0, 1, 0, 0]))
    assert [(item.images, item.accuracy) for item in bins] == [(2, 1.0), (2, 0.5)]
    assert metrics.expected_calibration_error(bins) == pytest.approx(0.45)


def test_bins_take_their_upper_edge_and_certainty_lies_in_the_last() -> None:
    probabilities = np.array([[1.0, 0.0], [0.6, 0.4]])
    bins = metrics.reliability(probabilities, np.array([0, 0]), bins=5)
    assert [(item.low, item.high) for item in bins] == [(0.4, 0.6), (0.8, 1.0)]


def test_mcnemar_is_the_mid_p_binomial_test_on_the_pictures_that_differ() -> None:
    a = np.array([True] * 80 + [False] * 20)
    b = a.copy()
    b[:3], b[80:92] = False, True  # b loses 3 and wins 12
    found = metrics.mcnemar(a, b)
    assert (found.images, found.only_a, found.only_b) == (100, 3, 12)
    assert found.difference == pytest.approx(0.09)
    assert found.p_value == pytest.approx(binomtest(3, 15, 0.5).pvalue - math.comb(15, 3) / 2**15)
    # Bonett and Price by hand: p1 = 4/102, p2 = 13/102.
    half = 1.959964 * math.sqrt((17 / 102 - (9 / 102) ** 2) / 102)
    assert (found.low, found.high) == pytest.approx((9 / 102 - half, 9 / 102 + half), abs=1e-6)


def test_mcnemar_of_one_loss_alone_is_a_coin_toss() -> None:
    found = metrics.mcnemar(np.array([True, True]), np.array([True, False]))
    assert found.p_value == 0.5
    assert found.difference == -0.5


def test_mcnemar_holds_for_thousands_of_differences() -> None:
    a = np.arange(10_000) % 2 == 0
    assert metrics.mcnemar(a, ~a).p_value == pytest.approx(1)


def test_mcnemar_of_equal_models_finds_nothing() -> None:
    same = np.array([True, False, True])
    assert metrics.mcnemar(same, same).p_value == 1
    assert metrics.mcnemar(same, same).difference == 0


def test_mcnemar_needs_the_same_pictures() -> None:
    with pytest.raises(InputError, match="same pictures"):
        metrics.mcnemar(np.array([True]), np.array([True, False]))


@pytest.mark.parametrize(
    ("probabilities", "labels", "words"),
    [
        (np.empty((0, 2)), np.empty(0, int), "test set is empty"),
        (np.array([[0.5, 0.5]]), np.array([2]), "labels must lie between"),
        (np.array([[np.nan, 0.5], [0.5, 0.5]]), np.array([0, 1]), "not numbers for 1 of 2 images"),
        (np.array([[np.inf, 0.5]]), np.array([0]), "not numbers"),
        (np.array([[0.5, 0.5, 0.0]]), np.array([0]), "must give 2 probabilities"),
        (np.array([[3.0, -2.0]]), np.array([0]), "softmax"),
        (np.array([[4.0, 2.0]]), np.array([0]), "softmax"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_sentence(
    probabilities: np.ndarray, labels: np.ndarray, words: str
) -> None:
    with pytest.raises(GraftError, match=words) as caught:
        metrics.check(probabilities, labels, ["a", "b"])
    assert "\n" not in str(caught.value)
