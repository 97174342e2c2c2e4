"""New data is looked at before training, and served pictures against those the model was judged on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graft import drift, intake, params
from graft.traffic import Traffic

LIMITS = params.parse((Path(__file__).parents[2] / params.FILE).read_text(encoding="utf-8")).retrain
CLASSES = ["brick", "moss"]


def test_new_removed_and_relabelled_pictures_are_told_by_their_pixels() -> None:
    rows = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    a, b, c, d = map(intake.fingerprint, rows)
    found = intake.changes({a: "brick", b: "moss", c: "moss"}, {a: "brick", b: "brick", d: "moss"})
    assert (found.new, found.removed, found.relabelled) == (1, 1, 1)


@pytest.mark.parametrize(
    ("after", "why"),
    [
        ({"brick": 90, "moss": 100}, None),
        ({"brick": 60, "moss": 51}, None),
        ({"brick": 100, "moss": 0}, "1 of 2 classes are gone (moss)"),
        ({"brick": 100}, "1 of 2 classes are gone (moss)"),
        ({"brick": 100, "moss": 20}, "moss most: 20 after 100"),
        ({"brick": 100, "moss": 100, "slate": 50}, "classes are new (slate)"),
    ],
)
def test_a_delivery_that_lost_too_much_is_objected_to(after: dict[str, int], why: str | None) -> None:
    found = intake.objections({"brick": 100, "moss": 100}, after, LIMITS)
    assert len(found) == (why is not None)
    assert all(why is not None and why in said for said in found)


def test_labels_that_contradict_the_live_model_are_objected_to() -> None:
    correct = np.arange(100) < 90
    assert intake.contradiction(correct, 0.95, LIMITS) is None
    said = intake.contradiction(~correct, 0.95, LIMITS)
    assert said is not None
    assert "agrees with only 10.0%" in said


def test_the_population_stability_index_is_the_textbook_one() -> None:
    # 0.5 is added to each count: negligible for these. Σ (o − e) ln(o / e) of (0.5, 0.5) and (0.6, 0.4).
    expected = 0.1 * np.log(0.6 / 0.5) - 0.1 * np.log(0.4 / 0.5)
    found = drift.psi(np.array([500_000, 500_000]), np.array([600_000, 400_000]))
    assert found == pytest.approx(expected, rel=1e-3)
    assert drift.psi(np.array([10, 20]), np.array([100, 200])) == pytest.approx(0, abs=1e-3)


def test_the_two_sample_test_is_scipys_on_values_without_ties() -> None:
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(3)
    edges = np.linspace(0, 1, 2001)
    first, second = rng.random(800), rng.random(900) ** 1.2
    p = drift.two_sample(np.histogram(first, edges)[0], np.histogram(second, edges)[0])
    assert p == pytest.approx(ks_2samp(first, second, method="asymp").pvalue, rel=0.3)


def traffic(seed: int, images: int, brightness: int = 100, moss: float = 0.5) -> Traffic:
    rng = np.random.default_rng(seed)
    own = rng.normal(brightness, 25, (images, 1, 1, 1))
    pictures = rng.normal(own, 15, (images, 16, 16, 3)).clip(0, 255).astype(np.uint8)
    share = np.where(rng.random(images) < moss, 0.9, 0.1)
    found = Traffic(CLASSES)
    found.add(pictures, np.stack([1 - share, share], axis=1).astype(np.float32))
    return found


def test_the_same_kind_of_pictures_has_not_drifted() -> None:
    alarmed = 0
    for seed in range(20):
        found = drift.look(traffic(100 + seed, 400), traffic(seed, 600), LIMITS)
        assert found is not None
        alarmed += bool(found.alarms)
    assert alarmed == 0


def test_other_pictures_and_other_answers_are_each_noticed() -> None:
    reference = traffic(1, 400)
    darker = drift.look(reference, traffic(2, 600, brightness=80), LIMITS)
    assert darker is not None
    assert any("look different in red, green, blue" in alarm for alarm in darker.alarms)
    mossy = drift.look(reference, traffic(2, 600, moss=0.9), LIMITS)
    assert mossy is not None
    assert [alarm.split(" moved")[0] for alarm in mossy.alarms] == ["the classes answered"]


def test_little_traffic_says_nothing() -> None:
    assert drift.look(traffic(1, 400), traffic(2, 30, brightness=10), LIMITS) is None
