"""The control on request: the same network with random weights, its head trained the same way."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from graft import params
from graft.evaluation.baselines import random_weights
from graft.shards import ShardedArray


def test_random_weights_are_judged_on_every_test_picture_and_leave_nothing_behind(
    tiny: params.Params, prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared, tmp_path / "data/prepared")
    probabilities = random_weights(tiny, tmp_path)
    labels = ShardedArray(prepared, "test.labels").read()
    assert probabilities.shape == (len(labels), 2)
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["prepared"]
    assert (probabilities == random_weights(tiny, tmp_path)).all()
    assert np.isfinite(probabilities).all()
