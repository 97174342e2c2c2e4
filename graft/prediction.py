"""Files of pictures to labels with an exported file, on this machine and without a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graft.errors import InputError
from graft.images import Pixels, UnreadableImage, decode, resize
from graft.inference import Model

BATCH = 32


@dataclass(frozen=True)
class Prediction:
    """One picture's most probable labels with their probabilities, best first."""

    name: str
    labels: list[tuple[str, float]]


def predict_files(model: Model, paths: Sequence[Path], top_k: int) -> Iterator[Prediction]:
    """The `top_k` best labels of each picture, in order.

    Raises:
        InputError: a file is missing or no picture.
    """
    for start in range(0, len(paths), BATCH):
        some = paths[start : start + BATCH]
        images = np.stack([resize(decode_file(path), model.image_size[0]) for path in some])
        for path, row in zip(some, model.predict(images), strict=True):
            best = np.argsort(-row, kind="stable")[:top_k]
            yield Prediction(str(path), [(model.classes[index], float(row[index])) for index in best])


def decode_file(path: Path) -> Pixels:
    """The picture in `path` as height × width × 3 uint8 RGB.

    Raises:
        InputError: it is missing or no picture.
    """
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except UnreadableImage as error:
        raise InputError(f"{path}: {error}") from error
