"""Seeded random views of pictures, the same for the same picture, view and seed on every run.

In and out: N×H×W×3 uint8. Each picture's draw depends on its row in the split alone, never on the batch.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from graft import params
from graft.images import resize

Array = npt.NDArray[Any]

SHIFT_SHARE = 1 / 8  # of the side, in each direction: the four pixels of 32 that CIFAR recipes use
CROP_SHARE = 0.7  # smallest side kept by a crop
COLOUR_RANGE = 0.2  # brightness and contrast change by up to this share


def kinds(settings: params.Params) -> set[str]:
    """What `features.augmentation` asks for; `auto` never flips the digits: mirrored they are others, or none."""
    auto = {"shift"} if settings.data.source == "digits" else {"flip", "shift"}
    asked = set(settings.features.augmentation)
    return asked - {"auto"} | auto if "auto" in asked else asked


def augment(images: Array, rows: Array, view: int, kinds: Collection[str], seed: int) -> Array:
    """View number `view` (1, 2, …) of pictures that stand in `rows` of their split."""
    out = np.empty_like(images)
    for i, row in enumerate(rows):
        rng = np.random.default_rng((seed, view, int(row)))
        out[i] = _one(images[i], kinds, rng)
    return out


def _one(image: Array, kinds: Collection[str], rng: np.random.Generator) -> Array:
    if "crop" in kinds:
        image = _crop(image, rng)
    if "shift" in kinds:
        image = _shift(image, rng)
    if "flip" in kinds and rng.random() < 0.5:
        image = image[:, ::-1]
    if "colour" in kinds:
        image = _colour(image, rng)
    return image


def _crop(image: Array, rng: np.random.Generator) -> Array:
    size = len(image)
    side = int(rng.integers(max(1, round(CROP_SHARE * size)), size + 1))
    top, left = rng.integers(0, size - side + 1, 2)
    return resize(np.ascontiguousarray(image[top : top + side, left : left + side]), size)


def _shift(image: Array, rng: np.random.Generator) -> Array:
    size = len(image)
    reach = max(1, round(size * SHIFT_SHARE))
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    top, left = rng.integers(0, 2 * reach + 1, 2)
    shifted: Array = padded[top : top + size, left : left + size]
    return shifted


def _colour(image: Array, rng: np.random.Generator) -> Array:
    brightness, contrast = rng.uniform(1 - COLOUR_RANGE, 1 + COLOUR_RANGE, 2)
    mean = image.mean()
    changed = (image.astype(np.float32) - mean) * contrast + mean * brightness
    clipped: Array = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
    return clipped
