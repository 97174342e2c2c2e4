"""What all tests share: the real images and layers where they are found."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real CIFAR-10 images and VGG16 layers beside this checkout."""
    if not (SHARED / "data" / "cifar10-images.zip").is_file():
        pytest.skip(
            f"SKIPPED ALOUD: no {SHARED.name}/data/cifar10-images.zip beside this checkout, real images not tested"
        )
    return SHARED
