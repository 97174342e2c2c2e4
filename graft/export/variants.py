"""The child process of the stage `export`: derives the further precisions and judges every file, without TensorFlow.

`python -m graft.export.variants PRECISION …` reads a `Job` as JSON from its standard input and prints one JSON value
a line: how many pictures more are done, and at last an object of results by precision. Files are written beside
the fp32 one.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from pydantic import BaseModel

from graft import params
from graft.datasets import preparation
from graft.errors import GraftError
from graft.export import files, ladder, precisions
from graft.inference import open_model

# Enough to see half a point of accuracy, whatever the size of the validation set.
TRIAL_IMAGES = 1000
# Shares of the inner layers left in float32, tried in turn; `None` leaves none, not even the first and the last.
FLOAT_SHARES = (None, 0.0, 0.25, 0.5)

Array = npt.NDArray[Any]


class Job(BaseModel):
    """What the parent asks for."""

    settings: params.Params
    prepared: Path
    folder: Path
    samples: Path


def main(job: Job) -> None:
    """Climb the ladder with every precision and print the results."""
    settings = job.settings.export
    test, labels = preparation.load_split(job.prepared, "test")
    truth = labels.read()
    pairs = _pairs(job.samples)
    results: dict[str, dict[str, Any]] = {}
    reference: Array | None = None
    for precision in settings.precisions:
        path = job.folder / files.model_file(precision)
        try:
            notes = {} if precision == "fp32" else derive(precision, path, job)
            measured = ladder.climb(path, settings.outputs, pairs, test, job.settings.runtime.threads, _say)
        except GraftError as error:
            results[precision] = {"error": str(error)}
            continue
        reference = measured.predicted if reference is None else reference
        results[precision] = notes | {
            "bytes": path.stat().st_size,
            "max_difference": measured.max_difference,
            "top1_agreement": measured.top1_agreement,
            "test_images": len(truth),
            "test_correct": int((measured.predicted == truth).sum()),
            "test_agreement": round(float((measured.predicted == reference).mean()), 4),
        }
    _say(results)


def derive(precision: str, path: Path, job: Job) -> dict[str, Any]:
    """Write the file of `precision` at `path` from the fp32 one beside it; returns what is to be noted of it.

    Raises:
        GraftError: there are too few pictures to calibrate with.
    """
    source = path.with_name(files.model_file("fp32"))
    fp32 = onnx.load(source)
    metadata = {entry.key.removeprefix("graft."): entry.value for entry in fp32.metadata_props}
    del metadata["sha256"]
    metadata["precision"] = precision
    if precision == "fp16":
        files.write_model(precisions.half(fp32), metadata, path)
        return {}
    calibration = _calibration(job)
    notes = _quantise(fp32, calibration, metadata, path, job)
    return {"calibration_images": len(calibration), **notes}


def _quantise(
    fp32: onnx.ModelProto, calibration: Array, metadata: dict[str, str], path: Path, job: Job
) -> dict[str, Any]:
    """The first of the plans that loses no more than allowed on validation pictures, or the one that loses least."""
    images, labels = preparation.load_split(job.prepared, "validation")
    rows = _spread(len(images), TRIAL_IMAGES)
    pictures, truth = images.take(rows), labels.take(rows)
    correct = _correct(path.with_name(files.model_file("fp32")), pictures, truth, job)
    tried: list[tuple[int, int, list[str], onnx.ModelProto]] = []
    first: onnx.ModelProto | None = None
    for number, share in enumerate(FLOAT_SHARES):
        left = []
        if share is not None and first is not None:
            left = precisions.sensitive_layers(fp32, first, calibration[: precisions.CALIBRATION_BATCH], share)
        int8 = precisions.quantise(fp32, _batches(calibration), left)
        first = first or int8
        files.write_model(int8, metadata, path)
        lost = correct - _correct(path, pictures, truth, job)
        tried.append((lost, number, left, int8))
        if ladder.within(lost, len(rows), job.settings.export.max_accuracy_loss):
            break
    _, _, left, int8 = min(tried, key=lambda plan: plan[:2])
    metadata = metadata | {"quantisation": json.dumps({"calibration_images": len(calibration), "left_float": left})}
    files.write_model(int8, metadata, path)
    return {"left_float": left}


def _calibration(job: Job) -> Array:
    images, _ = preparation.load_split(job.prepared, "train")
    if len(images) < precisions.MINIMUM_CALIBRATION:
        raise GraftError(
            f"int8 is calibrated on at least {precisions.MINIMUM_CALIBRATION} training pictures; add pictures or take "
            f"int8 out of export.precisions. Received: {len(images)}"
        )
    return images.take(_spread(len(images), job.settings.export.calibration_images))


def _spread(total: int, wanted: int) -> Array:
    """`wanted` row numbers spread evenly over `total`, so that every class is met."""
    return np.unique(np.linspace(0, total - 1, min(total, wanted)).round().astype(np.int64))


def _batches(images: Array) -> Iterator[Array]:
    for start in range(0, len(images), precisions.CALIBRATION_BATCH):
        yield images[start : start + precisions.CALIBRATION_BATCH]


def _correct(path: Path, pictures: Array, truth: Array, job: Job) -> int:
    model = open_model(path, provider="cpu", threads=job.settings.runtime.threads)
    batches = (pictures[start : start + ladder.BATCH] for start in range(0, len(pictures), ladder.BATCH))
    return int((ladder.top_classes(model, batches, lambda _: None) == truth).sum())


def _pairs(path: Path) -> list[tuple[Array, Array]]:
    with np.load(path, allow_pickle=False) as samples:
        return [(samples[f"image_{i}"], samples[f"expected_{i}"]) for i in range(len(samples.files) // 2)]


def _say(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if "int8" in sys.argv[1:]:
        # A second or more, which passes while the parent converts.
        importlib.import_module("onnxruntime.quantization")
    if asked := sys.stdin.read():
        main(Job.model_validate_json(asked))
