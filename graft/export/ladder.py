"""The validation ladder: what an exported file must stand before it ships, each rung harder than the one below.

1. the ONNX checker; 2. checksum, session, metadata, names, types and axes; 3. the same answers as Keras on real test
pictures at three batch sizes; 4. accuracy on the whole test set. Runs in a process without TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from graft.errors import GraftError
from graft.inference import OUTPUT, Model, open_model
from graft.shards import ShardedArray

# Batches of one, odd and prime sizes: an axis that was fixed by mistake shows in one of them.
PARITY_BATCHES = (1, 3, 17)
BATCH = 64

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Measured:
    """What the two upper rungs found."""

    max_difference: float  # in probability, from Keras, over the parity batches
    top1_agreement: float  # share of the parity pictures with Keras' top class
    predicted: Array  # N, the top class of every test picture


def climb(
    path: Path,
    outputs: Sequence[str],
    pairs: Sequence[tuple[Array, Array]],
    test: ShardedArray,
    threads: int,
    advance: Callable[[int], None],
) -> Measured:
    """All rungs for the file at `path`; `pairs` are pictures and Keras' probabilities, one for each parity batch.

    Raises:
        GraftError: the file does not reach the upper rungs.
    """
    check_graph(path)
    model = open_model(path, provider="cpu", threads=threads)
    check_axes(model, outputs)
    difference, agreement = compare(model, pairs)
    return Measured(difference, agreement, top_classes(model, test.batches(BATCH), advance))


def check_graph(path: Path) -> None:
    """The ONNX checker with shape inference.

    Raises:
        GraftError: it refuses the file.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker's C++ errors share no base with shape inference's
        raise GraftError(f"the ONNX checker refuses {path.name}: {' '.join(str(error).split())[:300]}") from error


def check_axes(model: Model, outputs: Sequence[str]) -> None:
    """Every input and output has the free axis `batch` first; the outputs are those asked for, all float32.

    Raises:
        GraftError: another name or type, or a fixed batch.
    """
    nodes = (*model.session.get_inputs(), *model.session.get_outputs())
    fixed = [node.name for node in nodes if node.shape[0] != "batch"]
    if fixed:
        raise GraftError(f"{model.path.name}: the first axis of {', '.join(fixed)} is not a free one named batch")
    names = [node.name for node in model.session.get_outputs()]
    if names != list(outputs):
        raise GraftError(f"{model.path.name} has outputs {', '.join(names)}; {', '.join(outputs)} are wanted")
    types = {node.name: node.type for node in model.session.get_outputs()}
    if set(types.values()) != {"tensor(float)"}:
        raise GraftError(f"{model.path.name}: every output must be float32. Received: {types}")


def compare(model: Model, pairs: Sequence[tuple[Array, Array]]) -> tuple[float, float]:
    """The largest difference in probability over `pairs` and the share of equal top classes.

    Raises:
        GraftError: answers of another shape or that are no numbers.
    """
    differences, equal = [], []
    for images, expected in pairs:
        received = model.predict(images)
        if received.shape != expected.shape or not np.isfinite(received).all():
            shape = f"{received.shape}, {int(np.isfinite(received).sum())} of {received.size} finite"
            raise GraftError(f"{model.path.name}: shape {expected.shape} of numbers is wanted. Received: {shape}")
        differences.append(float(np.abs(received - expected).max()))
        equal.append(received.argmax(1) == expected.argmax(1))
    return max(differences), float(np.concatenate(equal).mean())


def top_classes(model: Model, batches: Iterable[Array], advance: Callable[[int], None]) -> Array:
    """The most probable class of each picture of `batches`.

    Raises:
        GraftError: an answer is no number.
    """
    tops = []
    for images in batches:
        probabilities = model.predict(images)
        if not np.isfinite(probabilities).all():
            raise GraftError(f"{model.path.name}: {OUTPUT} are no numbers for some test pictures")
        tops.append(probabilities.argmax(1))
        advance(len(images))
    return np.concatenate(tops)


def within(lost: int, images: int, share: float) -> bool:
    """Whether `lost` correct answers of `images` are no more than `share`; one picture is always allowed."""
    return lost <= max(1, share * images)
