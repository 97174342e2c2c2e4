"""Where a network looks, by occlusion (Zeiler and Fergus 2014): cover a patch, see how far the confidence falls.

Needs nothing but the exported file's predictions: no gradients, no training framework.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Predict = Callable[[Array], Array]

GRID = 7  # patches of a quarter of the side, moved by an eighth
PATCH_SHARE = 4
STRIDE_SHARE = 8


def occlusion(predict: Predict, picture: Array, target: int) -> Array:
    """GRID×GRID float: by how much the probability of class `target` falls when the patch there is covered.

    `picture` is H×W×3 uint8; the cover has the picture's mean colour. Negative: the patch spoke against `target`.
    """
    variants = np.concatenate([picture[None], _covered(picture)])
    probability = predict(variants)[:, target].astype(np.float64)
    return np.asarray((probability[0] - probability[1:]).reshape(GRID, GRID))


def _covered(picture: Array) -> Array:
    height, width = picture.shape[:2]
    colour = picture.mean(axis=(0, 1)).astype(np.uint8)
    variants = np.repeat(picture[None], GRID * GRID, axis=0)
    for number in range(GRID * GRID):
        row, column = divmod(number, GRID)
        top, left = row * height // STRIDE_SHARE, column * width // STRIDE_SHARE
        variants[number, top : top + height // PATCH_SHARE, left : left + width // PATCH_SHARE] = colour
    return variants
