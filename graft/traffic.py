"""What a model was asked and what it answered, as bounded sums that can be added up and compared.

In: batches of pictures and their probabilities. Out: JSON of constant size. The server keeps these sums of
its traffic, the pipeline can take the same sums of the validation images, and drift is their difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.inference import Images, Probabilities

FORMAT = 1
CONFIDENCE_BINS = 10  # equal shares of 0..1
FEATURES = ("red", "green", "blue", "contrast", "detail")
FEATURE_BINS = 32  # equal shares of 0..256

# At most so many rows and columns of pixels are looked at: constant time a picture, whatever its size.
_GRID = 16

Values = npt.NDArray[np.float32]


def describe(images: Images) -> Values:
    """Features of `images` (N×H×W×3 uint8 RGB) as N×5 float32, each in 0..256, in the order of `FEATURES`.

    Mean red, green and blue; contrast, the standard deviation of the mean of the channels; detail, the
    mean absolute difference between neighbours in a row. On a grid of at most 16×16 pixels.
    """
    height, width = images.shape[1:3]
    grid = images[:, :: -(-height // _GRID), :: -(-width // _GRID)].astype(np.float32)
    number, rows, columns, _ = grid.shape
    pixels = grid.reshape(number, rows * columns, 3)
    # Means as products: four times as fast as reductions over axes this short, and a server does this for every batch.
    grey = pixels @ np.full(3, 1 / 3, np.float32)
    features = np.empty((number, len(FEATURES)), np.float32)
    features[:, :3] = np.full(rows * columns, 1 / (rows * columns), np.float32) @ pixels
    features[:, 3] = grey.std(axis=1)
    lines = grey.reshape(number, rows, columns)
    features[:, 4] = np.abs(np.diff(lines, axis=2)).mean(axis=(1, 2)) if columns > 1 else 0
    return features


class Traffic:
    """Sums over all pictures added: constant memory, whatever their number."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.images = 0
        self.class_counts = np.zeros(len(self.classes), np.int64)
        self.confidence = np.zeros(CONFIDENCE_BINS, np.int64)
        self.feature_sums = np.zeros(len(FEATURES), np.float64)
        self.feature_squares = np.zeros(len(FEATURES), np.float64)
        self.feature_counts = np.zeros((len(FEATURES), FEATURE_BINS), np.int64)

    def add(self, images: Images, probabilities: Probabilities) -> None:
        """Add `images` (N×H×W×3 uint8) and what was answered (N×C float32)."""
        self.images += len(images)
        self.class_counts += np.bincount(probabilities.argmax(axis=1), minlength=len(self.classes))
        bins = (probabilities.max(axis=1) * CONFIDENCE_BINS).astype(np.int64).clip(0, CONFIDENCE_BINS - 1)
        self.confidence += np.bincount(bins, minlength=CONFIDENCE_BINS)
        features = describe(images)
        self.feature_sums += features.sum(axis=0, dtype=np.float64)
        self.feature_squares += np.square(features, dtype=np.float64).sum(axis=0)
        slots = (features * (FEATURE_BINS / 256)).astype(np.int64).clip(0, FEATURE_BINS - 1)
        slots += np.arange(len(FEATURES)) * FEATURE_BINS
        self.feature_counts += np.bincount(slots.ravel(), minlength=self.feature_counts.size).reshape(
            self.feature_counts.shape
        )

    def merge(self, other: Traffic) -> None:
        """Add the sums of `other`.

        Raises:
            ValueError: it has other classes.
        """
        if other.classes != self.classes:
            raise ValueError(f"sums of the classes {other.classes} cannot be added to {self.classes}")
        self.images += other.images
        for name in ("class_counts", "confidence", "feature_sums", "feature_squares", "feature_counts"):
            getattr(self, name)[...] += getattr(other, name)

    def as_json(self) -> dict[str, Any]:
        """The sums as `docs/serving.md` describes them."""
        return {
            "format": FORMAT,
            "images": self.images,
            "class_counts": dict(zip(self.classes, self.class_counts.tolist(), strict=True)),
            "confidence_histogram": self.confidence.tolist(),
            "features": {
                name: {
                    "sum": self.feature_sums[index],
                    "sum_of_squares": self.feature_squares[index],
                    "histogram": self.feature_counts[index].tolist(),
                }
                for index, name in enumerate(FEATURES)
            },
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Traffic:
        """The sums that `as_json` wrote.

        Raises:
            ValueError: the document is of another format or not whole.
        """
        try:
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']}, this reads {FORMAT}")
            traffic = cls(list(document["class_counts"]))
            traffic.images = int(document["images"])
            traffic.class_counts[...] = list(document["class_counts"].values())
            traffic.confidence[...] = document["confidence_histogram"]
            for index, name in enumerate(FEATURES):
                feature = document["features"][name]
                traffic.feature_sums[index] = feature["sum"]
                traffic.feature_squares[index] = feature["sum_of_squares"]
                traffic.feature_counts[index] = feature["histogram"]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no sums of traffic ({error!r})") from error
        return traffic
