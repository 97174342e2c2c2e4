"""What all tests share: the real images and layers where they are found, and an environment like a bare machine's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"

# What a person's own machine sets and would reach the tests: colours where nobody looks, a proxy between two ends of
# the loopback, commits that want signing.
os.environ.pop("FORCE_COLOR", None)
os.environ |= {
    "no_proxy": "127.0.0.1,localhost",
    "NO_PROXY": "127.0.0.1,localhost",
    "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "commit.gpgSign",
    "GIT_CONFIG_VALUE_0": "false",
    "GIT_CONFIG_KEY_1": "tag.gpgSign",
    "GIT_CONFIG_VALUE_1": "false",
}


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real CIFAR-10 images and VGG16 layers beside this checkout."""
    for name in ("cifar10-images.zip", "cifar-10-binary-subset.tar.gz"):
        if not (SHARED / "data" / name).is_file():
            pytest.skip(f"SKIPPED ALOUD: no {SHARED.name}/data/{name} beside this checkout, real images not tested")
    return SHARED
