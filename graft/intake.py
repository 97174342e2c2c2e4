"""Whether a delivery of new data can be trained on: seen before any training, so that it costs seconds.

In: what `prepare` wrote, against what the live model was trained on. Out: the pictures that are new, gone or
relabelled, and the reasons to refuse. New labels that contradict a model that was right yesterday are more
likely wrong than new: without this look, a challenger trained on them would win on a test set as wrong.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.evaluation.study import SPLITS, Study
from graft.params import Retrain

Array = npt.NDArray[Any]
Pictures = dict[bytes, str]

BATCH = 256


@dataclass(frozen=True)
class Changes:
    """How the pictures of two deliveries differ, counted by their pixels."""

    new: int
    removed: int
    relabelled: int

    def __str__(self) -> str:
        return f"{self.new} new, {self.removed} removed, {self.relabelled} relabelled pictures"


def fingerprint(row: Array) -> bytes:
    """Sixteen bytes that tell a picture (H×W×3 uint8) from every other one."""
    return hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest()


def pictures(study: Study) -> Pictures:
    """Every prepared picture's fingerprint and class name."""
    found: Pictures = {}
    for split in SPLITS:
        labels = study.labels(split)
        start = 0
        for batch in study.images(split).batches(BATCH):
            for row, label in zip(batch, labels[start:], strict=False):
                found[fingerprint(row)] = study.classes[int(label)]
            start += len(batch)
    return found


def changes(before: Pictures, after: Pictures) -> Changes:
    """What is new, gone, or stands under another class."""
    both = before.keys() & after.keys()
    return Changes(
        new=len(after) - len(both),
        removed=len(before) - len(both),
        relabelled=sum(before[picture] != after[picture] for picture in both),
    )


def class_counts(study: Study) -> dict[str, int]:
    """Training and validation pictures of each class."""
    counts: Counter[str] = Counter(dict.fromkeys(study.classes, 0))
    for split in ("train", "validation"):
        for label, images in zip(*np.unique(study.labels(split), return_counts=True), strict=True):
            counts[study.classes[int(label)]] += int(images)
    return dict(counts)


def objections(before: Mapping[str, int], after: Mapping[str, int], limits: Retrain) -> list[str]:
    """Why the class counts of a delivery should not be trained on; nothing where they are fine.

    Args:
        before: pictures of each class that the live model was trained on.
        after: those of the delivery.
        limits: the section `retrain` of the parameters.
    """
    gone = [name for name in before if not after.get(name)]
    added = [name for name in after if name not in before]
    if gone:
        return [f"{len(gone)} of {len(before)} classes are gone ({_listed(gone)})"]
    if added:
        return [f"classes are new ({_listed(added)}), which the live model cannot be compared on"]
    least = 1 - limits.max_shrink
    shrunk = [name for name, images in before.items() if after[name] < images * least]
    if not shrunk:
        return []
    name = min(shrunk, key=lambda key: after[key] / before[key])
    return [
        f"{len(shrunk)} of {len(before)} classes lost more than {limits.max_shrink:.0%} of their pictures "
        f"(retrain.max_shrink), {name} most: {after[name]} after {before[name]}"
    ]


def contradiction(correct: Array, expected: float, limits: Retrain) -> str | None:
    """Why the delivery's labels look wrong to the live model, if they do.

    Args:
        correct: N bool, where the live model agrees with the delivery's labels.
        expected: its accuracy when it was registered, 0 to 1.
        limits: the section `retrain` of the parameters.
    """
    found = float(np.mean(correct))
    if expected - found <= limits.max_champion_drop:
        return None
    return (
        f"the live model, {expected:.1%} accurate when it was registered, agrees with only {found:.1%} of the new "
        f"labels: they are wrong, or the pictures are of another kind (retrain.max_champion_drop)"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
