"""A prepared data set small enough to train on in a second: stripes against checks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graft import params
from graft.datasets import preparation

TEXT = (Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8")
TINY = (
    "backbone.weights=none",
    "backbone.width=0.125",
    "data.source=folder",
    "data.test_fraction=0.2",
    "features.batch_size=8",
    "features.views=1",
    "head.hidden=[16]",
    "head.dropout=0.1",
    "head.mixup=0",
    "head.weight_decay=0.01",
    "head.epochs=12",
    "head.batch_size=8",
    "finetune.batch_size=8",
    "finetune.epochs=2",
)


def pattern(kind: str, rng: np.random.Generator) -> np.ndarray:
    """A noisy 32×32 picture of horizontal stripes or of a checkerboard."""
    rows, columns = np.indices((32, 32)) // 4
    mask = rows % 2 if kind == "stripes" else (rows + columns) % 2
    colour = rng.integers(100, 256, 3)
    return np.clip(mask[..., None] * colour + rng.integers(0, 60, (32, 32, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures in two class folders."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)
    for kind in ("checks", "stripes"):
        (root / kind).mkdir()
        for i in range(20):
            Image.fromarray(pattern(kind, rng)).save(root / kind / f"{i:02d}.png")
    return root


@pytest.fixture(scope="session")
def tiny(pictures: Path) -> params.Params:
    """Parameters for a run of seconds on `pictures`."""
    return params.parse(params.override(TEXT, [*TINY, f"data.path={pictures}"]))


@pytest.fixture(scope="session")
def prepared(tiny: params.Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pictures`, prepared."""
    folder = tmp_path_factory.mktemp("prepared")
    preparation.prepare(tiny, folder)
    return folder


@pytest.fixture(scope="session")
def run(tiny: params.Params, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with features, head and fine-tuned network of the tiny data set."""
    from tiny_run import run_stages

    folder = tmp_path_factory.mktemp("run")
    run_stages(tiny, prepared, folder)
    return folder
