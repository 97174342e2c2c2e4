"""The pictures of a report in one sheet, so that each is stored once and the page stays small."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from graft.shards import ShardedArray

Array = npt.NDArray[Any]

TILE = 64  # pixels a side at most: larger pictures are reduced
COLUMNS = 40
SHEET_BYTES = 1_700_000  # 2.3 MB as base64, which leaves room for everything else in a page of 3 MB
QUALITIES = (92, 85, 75, 60, 45, 30, 15, 5)


class Album:
    """Collects pictures by split and row; each gets a number, the same one when it is asked for again."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, int], int] = {}

    def add(self, split: str, row: int) -> int:
        """The number of the picture in `row` of `split`."""
        return self._numbers.setdefault((split, row), len(self._numbers))

    @property
    def pictures(self) -> list[tuple[str, int]]:
        """Split and row of each picture, by number."""
        return list(self._numbers)

    def sheet(self, splits: Mapping[str, ShardedArray], tile: int) -> Array:
        """All pictures as tiles of one R×S×3 uint8 array, `COLUMNS` in a row."""
        rows = max(1, -(-len(self._numbers) // COLUMNS))
        sheet = np.zeros((rows * tile, COLUMNS * tile, 3), np.uint8)
        numbers, pictures = list(self._numbers.values()), self.pictures
        for split, array in splits.items():
            mine = [number for number in numbers if pictures[number][0] == split]
            for start in range(0, len(mine), COLUMNS):
                part = mine[start : start + COLUMNS]
                for number, picture in zip(part, array.take(np.array([pictures[n][1] for n in part])), strict=True):
                    top, left = (position * tile for position in divmod(number, COLUMNS))
                    sheet[top : top + tile, left : left + tile] = _fit(picture, tile)
        return sheet


def encode(sheet: Array, limit: int = SHEET_BYTES) -> bytes:
    """`sheet` as WebP of at most `limit` bytes, without loss where that is small enough."""
    image = Image.fromarray(sheet)
    data = _webp(image, lossless=True)
    for quality in QUALITIES:
        if len(data) <= limit:
            break
        data = _webp(image, quality=quality)
    return data


def _webp(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "WEBP", method=3, **options)
    return out.getvalue()


def _fit(picture: Array, tile: int) -> Array:
    if picture.shape[:2] == (tile, tile):
        return picture
    return np.asarray(Image.fromarray(picture).resize((tile, tile), Image.Resampling.BOX))
