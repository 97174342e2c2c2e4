"""Temperature scaling finds the temperature that was put in."""

from __future__ import annotations

import numpy as np
import pytest

from graft.calibration import apply_temperature, fit_temperature
from graft.metrics import log_loss


def drawn(temperature: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities whose logits are `temperature` times what the labels were drawn from."""
    draws = np.random.default_rng(1)
    logits = 2 * draws.normal(size=(count, 5))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([draws.choice(5, p=row) for row in true])
    sure = np.exp(logits * temperature)
    return sure / sure.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_found_again(temperature: float) -> None:
    probabilities, labels = drawn(temperature, 5000)
    assert fit_temperature(probabilities, labels) == pytest.approx(temperature, rel=0.05)


def test_scaling_with_it_lowers_the_log_loss_and_keeps_every_answer() -> None:
    probabilities, labels = drawn(2.5, 2000)
    scaled = apply_temperature(probabilities, fit_temperature(probabilities, labels))
    assert log_loss(scaled, labels) < log_loss(probabilities, labels)
    assert (scaled.argmax(axis=1) == probabilities.argmax(axis=1)).all()
    assert scaled.sum(axis=1) == pytest.approx(1)


def test_a_temperature_done_by_hand() -> None:
    # Logits log 9 and 0 halved are log 3 and 0: three to one.
    assert apply_temperature(np.array([[0.9, 0.1]]), 2.0)[0].tolist() == pytest.approx([0.75, 0.25])


def test_few_pictures_that_are_all_right_do_not_make_it_boundlessly_sure() -> None:
    probabilities = np.tile([[0.9, 0.1]], (5, 1))
    assert 0.4 < fit_temperature(probabilities, np.zeros(5, int)) < 1


def test_exact_zeros_of_a_softmax_are_no_trouble() -> None:
    probabilities = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert np.isfinite(fit_temperature(probabilities, np.array([0, 1, 1])))
