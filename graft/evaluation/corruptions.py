"""Pictures made worse on purpose: six corruptions at five strengths (after CIFAR-10-C, Hendrycks and Dietterich 2019).

In: N×H×W×3 uint8 RGB. Out: the same shape and type. The same seed gives the same pictures.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[Any]
Corruption = Callable[[Array, int, np.random.Generator], Array]

STRENGTHS = 5
# CIFAR-10-C's values for 32 pixels; lengths grow with the picture.
NOISE_DEVIATION = (0.04, 0.06, 0.08, 0.09, 0.10)
BLUR_SIGMA = (0.4, 0.6, 0.7, 0.8, 1.0)
BRIGHTNESS_ADDED = (0.05, 0.1, 0.15, 0.2, 0.3)
CONTRAST_KEPT = (0.75, 0.5, 0.4, 0.3, 0.15)
JPEG_QUALITY = (80, 65, 58, 50, 40)
# CIFAR-10-C does not rotate; these angles are this project's own. It adds brightness to HSV's value, here it is
# added to each channel.
ROTATION_DEGREES = (5, 10, 15, 20, 30)
REFERENCE_SIZE = 32


def corrupt(pictures: Array, name: str, strength: int, seed: int) -> Array:
    """`pictures` with the corruption `name` at `strength` 1 to 5; draws depend on all arguments but the pixels."""
    number = list(CORRUPTIONS).index(name)
    draws = np.random.default_rng([seed, number, strength])
    return CORRUPTIONS[name](pictures, strength - 1, draws)


def _noise(pictures: Array, level: int, draws: np.random.Generator) -> Array:
    noise = draws.normal(0, NOISE_DEVIATION[level] * 255, pictures.shape)
    return _to_bytes(pictures + noise)


def _blur(pictures: Array, level: int, _: np.random.Generator) -> Array:
    from scipy.ndimage import gaussian_filter

    sigma = BLUR_SIGMA[level] * pictures.shape[1] / REFERENCE_SIZE
    return _to_bytes(gaussian_filter(pictures.astype(np.float32), (0, sigma, sigma, 0), mode="nearest"))


def _brightness(pictures: Array, level: int, _: np.random.Generator) -> Array:
    return _to_bytes(pictures + BRIGHTNESS_ADDED[level] * 255.0)


def _contrast(pictures: Array, level: int, _: np.random.Generator) -> Array:
    mean = pictures.mean(axis=(1, 2), keepdims=True)
    return _to_bytes((pictures - mean) * CONTRAST_KEPT[level] + mean)


def _jpeg(pictures: Array, level: int, _: np.random.Generator) -> Array:
    out = np.empty_like(pictures)
    for index, picture in enumerate(pictures):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY[level])
        with Image.open(buffer) as decoded:
            out[index] = np.asarray(decoded)
    return out


def _rotation(pictures: Array, level: int, draws: np.random.Generator) -> Array:
    from scipy.ndimage import rotate

    turns = draws.choice([-1, 1], len(pictures)) * ROTATION_DEGREES[level]
    # Reflected borders: black corners would be a second corruption.
    turned = [
        rotate(picture.astype(np.float32), turn, axes=(0, 1), reshape=False, order=1, mode="reflect")
        for picture, turn in zip(pictures, turns, strict=True)
    ]
    return _to_bytes(np.stack(turned))


def _to_bytes(values: Array) -> Array:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


CORRUPTIONS: dict[str, Corruption] = {
    "noise": _noise,
    "blur": _blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "jpeg": _jpeg,
    "rotation": _rotation,
}
