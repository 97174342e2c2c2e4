"""How fine a heat map is: by what the model costs, never by how busy the machine is."""

from __future__ import annotations

import pytest

from serving.occlusion import choose_cells

VGG16, QUARTER = 14.7e6, 0.92e6


@pytest.mark.parametrize(
    ("weights", "pixels", "cells"),
    [
        (QUARTER, 32, 14),
        (VGG16, 32, 14),
        (VGG16, 64, 6),
        (QUARTER, 224, 7),
        (VGG16, 224, 4),
        (1.0, 5000, 14),
        (VGG16, 8, 4),
        (VGG16, 2, 2),
    ],
)
def test_costly_models_get_a_coarser_map_and_tiny_pictures_no_more_cells_than_pixels(
    weights: float, pixels: int, cells: int
) -> None:
    assert choose_cells(weights, pixels, pixels) == cells
