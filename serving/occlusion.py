"""What the model looked at: hide one part of the picture after the other and see what the class loses.

After Zeiler and Fergus, *Visualizing and Understanding Convolutional Networks* (2014). It needs nothing but
the exported file, whatever network is in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graft.inference import Images, Probabilities
from serving.repository import Version

Heat = npt.NDArray[np.float32]

# A person waits for the map, so costly models get a coarser one; the same model always gets the same.
COARSEST, FINEST = 4, 14
# A convolution's work grows with its weights and with the picture. This many weights times pixels, over all runs,
# is VGG16 at 32×32 seen in the finest map: docs/decisions/heat-map.md has the times.
WORK = 3.5e12
_BYTES_A_WEIGHT = {"fp32": 4, "fp16": 2, "int8": 1}
# Away from 0 and 1, where the odds of float32 probabilities mean nothing.
_CLIP = 1e-6


@dataclass(frozen=True)
class HeatMap:
    """How much hiding each cell takes from the class: rows×columns, 0 nothing to 1 most in this picture."""

    label: int
    probability: float
    values: Heat
    runs: int


async def explain(version: Version, image: Images, label: int | None = None) -> HeatMap:
    """The heat map of `image` (H×W×3 uint8) for class `label`, or for the most probable one.

    The parts are run in small batches, so that other requests get their turn between them.
    """
    (whole,) = (await version.batcher.submit(image[None])).probabilities
    chosen = int(whole.argmax()) if label is None else label
    height, width = image.shape[:2]
    cells = choose_cells(_weights(version), height, width)
    parts = hide_parts(image, cells)
    step = max(1, version.batcher.max_batch_size // 4)
    answers = [
        (await version.batcher.submit(parts[start : start + step])).probabilities
        for start in range(0, len(parts), step)
    ]
    hidden = np.concatenate(answers)[:, chosen]
    loss = _log_odds(whole[chosen]) - _log_odds(hidden)
    return HeatMap(chosen, float(whole[chosen]), spread(loss, cells), len(parts) + 1)


def choose_cells(weights: float, height: int, width: int) -> int:
    """Cells a side of the map, for a model of so many weights that sees pictures of `height` by `width` pixels."""
    affordable = int((WORK / (weights * height * width)) ** 0.5) - 1
    smaller = min(height, width)
    return max(min(affordable, FINEST, smaller // 2), min(COARSEST, smaller))


def _weights(version: Version) -> float:
    return version.file_bytes / _BYTES_A_WEIGHT.get(version.model.metadata["precision"], 4)


def hide_parts(image: Images, cells: int) -> Images:
    """`image` once for each of (cells+1)² windows of two by two cells, which take its mean colour.

    Windows overlap by half, so that every cell is hidden by four of them and edges leave no pattern.
    """
    height, width = image.shape[:2]
    rows = np.linspace(0, height, cells + 1).round().astype(int)
    columns = np.linspace(0, width, cells + 1).round().astype(int)
    colour = image.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
    parts = np.repeat(image[None], (cells + 1) ** 2, axis=0)
    for row in range(cells + 1):
        for column in range(cells + 1):
            top, bottom = rows[max(row - 1, 0)], rows[min(row + 1, cells)]
            left, right = columns[max(column - 1, 0)], columns[min(column + 1, cells)]
            parts[row * (cells + 1) + column, top:bottom, left:right] = colour
    return parts


def spread(loss: Probabilities, cells: int) -> Heat:
    """From the loss of each of (cells+1)² windows to the heat of cells×cells, scaled to 0..1."""
    windows = loss.reshape(cells + 1, cells + 1)
    heat = (windows[:-1, :-1] + windows[1:, :-1] + windows[:-1, 1:] + windows[1:, 1:]) / 4
    heat = heat.clip(0)
    peak = heat.max()
    return np.asarray(heat / peak if peak > 0 else heat, np.float32)


def _log_odds(probability: Probabilities) -> Probabilities:
    clipped = np.clip(probability, _CLIP, 1 - _CLIP)
    return np.asarray(np.log(clipped / (1 - clipped)))
