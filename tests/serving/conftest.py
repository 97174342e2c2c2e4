"""What the tests of the server share: small models and one running server."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx_models import colour_model
from PIL import Image
from servers import Server, serving


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_model(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture(scope="session")
def server(model_file: Path) -> Iterator[Server]:
    """One server for all tests that leave it as they found it."""
    with serving("--model", model_file, "--drain", "0") as running:
        yield running


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (64, 48), kind: str = "PNG") -> bytes:
    """An encoded picture of one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind)
    return out.getvalue()


RED, GREEN, BLUE = (250, 10, 20), (10, 240, 20), (5, 10, 250)
PIXELS = np.stack([np.full((32, 32, 3), colour, np.uint8) for colour in (RED, GREEN, BLUE)])
