"""How fast the exported files are on this machine.

Kept apart from the findings: a clock never shows the same twice, and what a stage writes must be the same twice.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.evaluation.heatmaps import Predict

Array = npt.NDArray[Any]

BATCH = 32
BATCHES = 3
SINGLES = 20


def measure(predict: Mapping[str, Predict], pictures: Array) -> dict[str, dict[str, float]]:
    """For each precision: images a second in batches, median and 95th percentile milliseconds of one picture.

    `pictures` is n×H×W×3 uint8, n at least 1; it is repeated to fill a batch. The first run of each kind warms up.
    """
    batch = np.resize(pictures, (BATCH, *pictures.shape[1:]))
    found = {}
    for name, predictor in predict.items():
        batches, singles = _times(predictor, batch, BATCHES), _times(predictor, batch[:1], SINGLES)
        found[name] = {
            "images_per_second": BATCH / float(np.median(batches)),
            "latency_ms": 1000 * float(np.median(singles)),
            "latency_p95_ms": 1000 * float(np.percentile(singles, 95)),
        }
    return found


def _times(predict: Predict, batch: Array, runs: int) -> list[float]:
    predict(batch)
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        predict(batch)
        seconds.append(time.perf_counter() - start)
    return seconds


def save(path: Path, files: Mapping[str, str], provider: str, figures: Mapping[str, Any]) -> None:
    """Keep `figures` beside the SHA-256 sums of the `files` they belong to, and the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    kept = {"files": dict(files), "provider": provider, "machine": machine, "precisions": figures}
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
