"""What the tests of the server share: small models and one running server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx_models import colour_model
from servers import Server, serving


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_model(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture(scope="session")
def server(model_file: Path) -> Iterator[Server]:
    """One server for all tests that leave it as they found it."""
    with serving("--model", model_file, "--provider", "cpu", "--grpc-port", "0", "--drain", "0") as running:
        yield running
