"""The gate promotes what is better beyond chance, keeps the champion otherwise, and refuses what is broken."""

from __future__ import annotations

import numpy as np
import pytest

from graft import gate
from graft.params import Gate

CLASSES = ["brick", "moss", "slate"]
BOUNDS = Gate(min_accuracy=0.7, min_class_recall=0.4, max_class_drop=0.1, min_gain=0.0, significance=0.05)
LABELS = np.arange(300) % 3


def right_on(correct: np.ndarray) -> np.ndarray:
    """Probabilities of a model that is right where `correct` says."""
    answers = np.where(correct, LABELS, (LABELS + 1) % 3)
    found = np.full((len(LABELS), 3), 0.1, np.float32)
    found[np.arange(len(LABELS)), answers] = 0.8
    return found


def wrong_at(*rows: range) -> np.ndarray:
    correct = np.ones(len(LABELS), bool)
    for part in rows:
        correct[list(part)] = False
    return right_on(correct)


def test_the_first_model_passes_on_the_absolute_bounds_alone() -> None:
    assert gate.decide(wrong_at(range(60)), None, LABELS, CLASSES, BOUNDS).outcome == "promote"


def test_a_gain_beyond_chance_is_promoted_with_its_interval() -> None:
    decision = gate.decide(wrong_at(range(10)), wrong_at(range(40)), LABELS, CLASSES, BOUNDS)
    assert decision.outcome == "promote"
    assert decision.test is not None
    assert decision.test.difference == pytest.approx(0.1)
    assert 0 < decision.test.low < 0.1 < decision.test.high
    assert "+10.00%" in decision.why


def test_noise_is_not_promoted() -> None:
    challenger, champion = wrong_at(range(20)), wrong_at(range(20, 44))
    decision = gate.decide(challenger, champion, LABELS, CLASSES, BOUNDS)
    assert decision.challenger is not None
    assert decision.champion is not None
    assert decision.challenger.value > decision.champion.value
    assert decision.outcome == "keep"
    assert "beyond chance" in decision.why


def test_noise_is_promoted_about_as_seldom_as_the_level_says() -> None:
    rng = np.random.default_rng(5)
    promoted = sum(
        gate.decide(right_on(rng.random(300) < 0.9), right_on(rng.random(300) < 0.9), LABELS, CLASSES, BOUNDS).outcome
        == "promote"
        for _ in range(200)
    )
    # Half of the level goes to each side; the exact test is careful beyond that.
    assert promoted <= 200 * 0.05


def test_a_worse_model_is_not_promoted() -> None:
    decision = gate.decide(wrong_at(range(50)), wrong_at(range(10)), LABELS, CLASSES, BOUNDS)
    assert decision.outcome == "keep"
    assert decision.why.startswith("worse than the champion")


def test_a_gain_smaller_than_asked_is_not_promoted() -> None:
    asked = BOUNDS.model_copy(update={"min_gain": 0.2})
    assert gate.decide(wrong_at(range(10)), wrong_at(range(40)), LABELS, CLASSES, asked).outcome == "keep"


def test_a_class_does_not_pay_for_the_gain_of_the_others() -> None:
    # The challenger is right everywhere but on 20 bricks; the champion is wrong on 60 of the others.
    decision = gate.decide(
        wrong_at(range(0, 60, 3)), wrong_at(range(1, 90, 3), range(2, 90, 3)), LABELS, CLASSES, BOUNDS
    )
    assert decision.test is not None
    assert decision.test.p_value < 0.001
    assert decision.outcome == "keep"
    assert "class brick loses 20.0% recall" in decision.why


@pytest.mark.parametrize(
    ("challenger", "why"),
    [
        (wrong_at(range(120)), "gate.min_accuracy"),
        (wrong_at(range(0, 300, 3)), "worst class brick at 0.0% recall"),
        (np.full((300, 3), np.nan, np.float32), "not numbers"),
    ],
)
def test_a_broken_model_is_refused_whatever_the_champion(challenger: np.ndarray, why: str) -> None:
    for champion in (None, wrong_at(range(290))):
        decision = gate.decide(challenger, champion, LABELS, CLASSES, BOUNDS)
        assert decision.outcome == "refuse"
        assert why in decision.why


def test_only_pictures_new_to_the_champion_count() -> None:
    # By heart the champion knows the first 200; on the others the challenger is clearly better.
    champion, challenger = wrong_at(range(200, 260)), wrong_at(range(60))
    unseen = np.arange(300) >= 200
    assert gate.decide(challenger, champion, LABELS, CLASSES, BOUNDS).outcome == "keep"
    decision = gate.decide(challenger, champion, LABELS, CLASSES, BOUNDS, unseen)
    assert decision.outcome == "promote"
    assert decision.test is not None
    assert decision.test.images == 100


def test_nothing_fair_to_compare_on_keeps_the_champion() -> None:
    decision = gate.decide(wrong_at(), wrong_at(range(60)), LABELS, CLASSES, BOUNDS, np.zeros(300, bool))
    assert decision.outcome == "keep"
    assert "trained on every test picture" in decision.why


def test_a_class_without_test_pictures_is_refused() -> None:
    rows = LABELS != 2
    decision = gate.decide(wrong_at()[rows], None, LABELS[rows], CLASSES, BOUNDS)
    assert decision.outcome == "refuse"
    assert "no test picture of slate" in decision.why
