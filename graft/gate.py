"""Whether a new model may go live: absolute bounds, and a paired test against the model that is live.

In: probabilities of the challenger and, where there is one, the champion, on the same test pictures. Out: a
`Decision` with every number it rests on. `promote` needs a gain beyond chance; `keep` leaves the champion;
`refuse` says that the challenger is broken, whatever the champion does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from graft import metrics
from graft.errors import GraftError
from graft.metrics import Interval, PairedTest
from graft.params import Gate

Array = npt.NDArray[Any]
Outcome = Literal["promote", "keep", "refuse"]


@dataclass(frozen=True)
class Check:
    """One question of the gate and its answer in a sentence."""

    name: str
    passed: bool
    says: str


@dataclass(frozen=True)
class Decision:
    """What becomes of the challenger, why, and the numbers; `champion` and `test` are None without a champion."""

    outcome: Outcome
    why: str
    checks: tuple[Check, ...]
    challenger: Interval | None = None
    champion: Interval | None = None
    test: PairedTest | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, for the registry and the history."""
        return asdict(self)


def decide(
    challenger: Array,
    champion: Array | None,
    labels: Array,
    classes: Sequence[str],
    bounds: Gate,
    unseen: Array | None = None,
) -> Decision:
    """Judge the challenger.

    Args:
        challenger: N×C float32 probabilities of the test pictures.
        champion: the same of the live model; None when there is none, or when it knows other classes.
        labels: N true class numbers.
        classes: C names.
        bounds: the section `gate` of the parameters.
        unseen: N bool, the pictures that the champion was not trained on: only these are fair to compare on.
            None is all.
    """
    try:
        metrics.check(challenger, labels, classes)
    except GraftError as error:
        return refused("sound", str(error))
    checks = _absolute(challenger, labels, classes, bounds)
    accuracy = metrics.accuracy(challenger, labels)
    if failed := _failed(checks):
        return Decision("refuse", failed, tuple(checks), accuracy)
    if champion is None:
        why = f"the first model, {_percent(accuracy.value)} accurate, holds the absolute bounds"
        return Decision("promote", why, tuple(checks), accuracy)
    fair = np.ones(len(labels), bool) if unseen is None else unseen
    if not fair.any():
        checks.append(
            Check("better", False, "the champion was trained on every test picture: nothing fair to compare on")
        )
        return Decision("keep", checks[-1].says, tuple(checks), accuracy, metrics.accuracy(champion, labels))
    rivals, truth = (champion[fair], challenger[fair]), labels[fair]
    test = metrics.mcnemar(*(rival.argmax(axis=1) == truth for rival in rivals))
    checks += [_better(test, bounds), _no_class_lost(*rivals, truth, classes, bounds)]
    failed = _failed(checks)
    outcome: Outcome = "keep" if failed else "promote"
    return Decision(
        outcome, failed or checks[-2].says, tuple(checks), accuracy, metrics.accuracy(rivals[0], truth), test
    )


def refused(name: str, says: str) -> Decision:
    """A refusal before there was anything to measure."""
    return Decision("refuse", says, (Check(name, False, says),))


def recalls(probabilities: Array, labels: Array, classes: int) -> Array:
    """C float64: the share of each class's pictures that is recognised; NaN where the class has none."""
    matrix = metrics.confusion(probabilities.argmax(axis=1), labels, classes)
    images = matrix.sum(axis=1)
    return np.where(images > 0, matrix.diagonal() / np.maximum(images, 1), np.nan)


def _absolute(probabilities: Array, labels: Array, classes: Sequence[str], bounds: Gate) -> list[Check]:
    accuracy = metrics.accuracy(probabilities, labels).value
    found = recalls(probabilities, labels, len(classes))
    checks = [
        Check(
            "accuracy",
            accuracy >= bounds.min_accuracy,
            f"accuracy {_percent(accuracy)}, wanted at least {_percent(bounds.min_accuracy)} (gate.min_accuracy)",
        )
    ]
    if np.isnan(found).any():
        absent = ", ".join(str(classes[int(index)]) for index in np.flatnonzero(np.isnan(found)))
        return [*checks, Check("class recall", False, f"no test picture of {absent}: its recall cannot be known")]
    worst = int(np.argmin(found))
    says = (
        f"worst class {classes[worst]} at {_percent(float(found[worst]))} recall, "
        f"wanted at least {_percent(bounds.min_class_recall)} (gate.min_class_recall)"
    )
    return [*checks, Check("class recall", bool(found[worst] >= bounds.min_class_recall), says)]


def _better(test: PairedTest, bounds: Gate) -> Check:
    numbers = (
        f"{test.difference:+.2%} accuracy ({test.low:+.2%} to {test.high:+.2%}), right alone on {test.only_b} pictures "
        f"against {test.only_a} of {test.images}, p = {test.p_value:.2g}"
    )
    if test.p_value >= bounds.significance:
        return Check("better", False, f"no difference beyond chance: {numbers}")
    if test.difference <= 0:
        return Check("better", False, f"worse than the champion: {numbers}")
    if test.difference < bounds.min_gain:
        return Check("better", False, f"better by less than gate.min_gain asks: {numbers}")
    return Check("better", True, f"better than the champion: {numbers}")


def _no_class_lost(champion: Array, challenger: Array, labels: Array, classes: Sequence[str], bounds: Gate) -> Check:
    """A gain on the whole must not be paid by one class; a class without fair pictures cannot tell."""
    loss = recalls(champion, labels, len(classes)) - recalls(challenger, labels, len(classes))
    loss = np.where(np.isnan(loss), 0, loss)
    worst = int(np.argmax(loss))
    if loss[worst] <= 0:
        return Check("no class lost", True, "no class loses recall")
    says = (
        f"class {classes[worst]} loses {_percent(float(loss[worst]))} recall, "
        f"at most {_percent(bounds.max_class_drop)} allowed (gate.max_class_drop)"
    )
    return Check("no class lost", bool(loss[worst] <= bounds.max_class_drop), says)


def _failed(checks: Sequence[Check]) -> str:
    return "; ".join(check.says for check in checks if not check.passed)


def _percent(share: float) -> str:
    return f"{share:.1%}"
