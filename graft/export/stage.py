"""The stage `export`: one conversion, every precision derived from it, only what stands the ladder ships.

In: the fine-tuned network and the prepared pictures. Out, in one folder: `model.{precision}.onnx` as
`docs/model-file.md` describes, `labels.txt`, `export.json`, and a Triton model repository.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import keras
import numpy as np
import numpy.typing as npt

from graft import adaptation, calibration, heads, params, progress, provenance
from graft.datasets import preparation
from graft.errors import GraftError
from graft.export import conversion, files, ladder, variants
from graft.inference import FORMAT, SUMMARY
from graft.shards import ShardedArray

HISTOGRAM_BINS = 10
PREDICT_BATCH = 256

Array = npt.NDArray[Any]
Validate = Callable[[variants.Job], Iterator[Any]]


def export(settings: params.Params, prepared: Path, network: Path, folder: Path, lock: str) -> dict[str, Any]:
    """Write the model files into `folder`; returns what `export.json` says. `lock` is the hash of the inputs.

    Raises:
        GraftError: the network does not convert, or the fp32 file misses its bound; then nothing ships.
    """
    description = preparation.describe(prepared)
    _empty(folder)
    with _validator(settings.export.precisions) as validate:
        model, probabilities, temperature = _calibrated(settings, network, prepared)
        facts = _metadata(settings, description, network, probabilities)
        source = provenance.collect(settings, description["fingerprint"], lock) | {"features": facts.pop("engine")}
        metadata = facts | temperature | {"provenance": source}
        proto = conversion.convert(model, settings.export.outputs, settings.export.resize)
        files.write_model(proto, metadata, folder / files.model_file("fp32"))
        del proto
        results = _validate(settings, prepared, folder, model, validate)
    judged = {str(name): _judge(name, results, settings.export) for name in settings.export.precisions}
    _ship(judged, settings.export, description["classes"], folder)
    summary = {"precisions": judged, **temperature}
    heads.write_json(folder / SUMMARY, summary)
    return summary


def _empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("model.*.onnx"):
        path.unlink()
    shutil.rmtree(folder / "triton", ignore_errors=True)


def _calibrated(settings: params.Params, network: Path, prepared: Path) -> tuple[keras.Model, Array, dict[str, float]]:
    """The network, its probabilities (N×C) of the validation pictures, and what to note of its temperature.

    Where `export.calibrate` asks for a temperature, it is in the network and in the probabilities.
    """
    model = conversion.classifier(settings, network)
    probabilities = _probabilities(model, prepared)
    if not settings.export.calibrate:
        return model, probabilities, {}
    _, labels = preparation.load_split(prepared, "validation")
    temperature = round(calibration.fit_temperature(probabilities, labels.read()), 4)
    calibrated = calibration.apply_temperature(probabilities, temperature)
    scaled = conversion.tempered(model, settings.export.outputs, temperature)
    return scaled, calibrated, {"temperature": temperature}


def _metadata(
    settings: params.Params, description: dict[str, Any], network: Path, probabilities: Array
) -> dict[str, Any]:
    trained = json.loads((network / adaptation.DESCRIPTION).read_text(encoding="utf-8"))
    size = settings.data.image_size
    return {
        "format": FORMAT,
        "name": settings.export.name,
        "classes": description["classes"],
        "image_size": [size, size],
        "input": conversion.describe_input(size, settings.export.resize),
        "precision": "fp32",
        "engine": trained["engine"],
        "metrics": {"validation_accuracy": round(trained["validation_accuracy"], 4), "kept": trained["kept"]},
        "reference": _reference(probabilities),
    }


def _probabilities(model: keras.Model, prepared: Path) -> Array:
    """Of the validation pictures, N×C."""
    images, _ = preparation.load_split(prepared, "validation")
    return np.concatenate([_keras(model, batch) for batch in images.batches(PREDICT_BATCH)])


def _keras(model: keras.Model, images: Array) -> Array:
    outputs = model.predict_on_batch(images)
    return np.asarray(outputs[0] if isinstance(outputs, list) else outputs)


def _reference(probabilities: Array) -> dict[str, Any]:
    """Shares of predicted classes and of confidence on the validation pictures, to compare served traffic with."""
    shares = np.bincount(probabilities.argmax(1), minlength=probabilities.shape[1]) / len(probabilities)
    histogram, _ = np.histogram(probabilities.max(1), bins=HISTOGRAM_BINS, range=(0, 1))
    return {
        "images": len(probabilities),
        "class_shares": [round(float(share), 4) for share in shares],
        "confidence_histogram": [round(float(count) / len(probabilities), 4) for count in histogram],
    }


def _validate(
    settings: params.Params, prepared: Path, folder: Path, model: keras.Model, validate: Validate
) -> dict[str, Any]:
    """What the child process found, by precision.

    Raises:
        GraftError: the child died.
    """
    images, _ = preparation.load_split(prepared, "test")
    meter = progress.Meter("export", len(images) * len(settings.export.precisions))
    with tempfile.TemporaryDirectory(prefix="graft-") as scratch:
        samples = Path(scratch) / "samples.npz"
        np.savez(samples, **_samples(model, images))  # type: ignore[arg-type]
        for value in validate(variants.Job(settings=settings, prepared=prepared, folder=folder, samples=samples)):
            if isinstance(value, dict):
                return value
            meter.advance(value)
    raise GraftError("the process that validates the exported files ended without a result; run the stage again")


def _samples(model: keras.Model, images: ShardedArray) -> dict[str, Array]:
    """Real test pictures in the parity batches (fewer where the test set is small) with Keras' answers."""
    pairs: dict[str, Array] = {}
    start = 0
    for i, size in enumerate(ladder.PARITY_BATCHES):
        batch = images.take(np.arange(start, start + size) % len(images))
        pairs |= {f"image_{i}": batch, f"expected_{i}": _keras(model, batch)}
        start += size
    return pairs


@contextmanager
def _validator(precisions: Sequence[str]) -> Iterator[Validate]:
    """A child process without TensorFlow that judges one job: each value that it prints, as it comes.

    It starts at once, so that it has its libraries by the time the network is converted; asked nothing, it ends.
    """
    command = [sys.executable, "-m", variants.__name__, *precisions]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as complaints,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=complaints, text=True, encoding="utf-8") as child,
    ):
        yield partial(_ask, child, complaints)


def _ask(child: subprocess.Popen[str], complaints: IO[str], job: variants.Job) -> Iterator[Any]:
    """The child's answers to `job`.

    Raises:
        GraftError: it ended with an error.
    """
    assert child.stdin is not None and child.stdout is not None  # noqa: S101, PT018 - pipes were asked for
    with suppress(BrokenPipeError):  # it has died already; its last words follow
        child.stdin.write(job.model_dump_json())
        child.stdin.close()
    for line in child.stdout:
        yield json.loads(line)
    if child.wait():
        complaints.seek(0)
        reason = (complaints.read().strip().splitlines() or [f"status {child.returncode}"])[-1]
        raise GraftError(f"the exported files cannot be validated: {reason}")


def _judge(precision: str, results: dict[str, Any], settings: params.Export) -> dict[str, Any]:
    """What `export.json` says of one file: its measurements, and whether and why not it ships."""
    found = results[precision]
    facts: dict[str, Any] = {"file": files.model_file(precision), "bytes": found.get("bytes")}
    reason = found.get("error") or _shortfall(precision, found, results["fp32"], settings)
    facts |= {"shipped": not reason} | ({"reason": reason} if reason else {})
    if "error" in found:
        return facts
    facts |= {key: value for key, value in found.items() if key not in ("max_difference", "test_correct")}
    # The last digits carry no news and would differ from machine to machine.
    facts["max_difference"] = float(f"{found['max_difference']:.1g}")
    facts["accuracy"] = round(found["test_correct"] / found["test_images"], 6)
    return facts


def _shortfall(precision: str, found: dict[str, Any], fp32: dict[str, Any], settings: params.Export) -> str:
    """Why a file misses its bound, or nothing."""
    name = files.model_file(precision)
    bound = {"fp32": settings.max_difference, "fp16": settings.max_difference_fp16}.get(precision)
    if bound is not None and found["max_difference"] > bound:
        key = "export.max_difference" + ("" if precision == "fp32" else f"_{precision}")
        return f"{name} differs from Keras by {found['max_difference']:.2g}, more than {key} ({bound:g}) allows"
    lost = fp32.get("test_correct", 0) - found["test_correct"]
    if not ladder.within(lost, found["test_images"], settings.max_accuracy_loss):
        share = lost / found["test_images"]
        return (
            f"{name} loses {share:.4f} of accuracy against fp32 on the test set, more than export.max_accuracy_loss "
            f"({settings.max_accuracy_loss:g}) allows"
        )
    return ""


def _ship(precisions: Mapping[str, dict[str, Any]], settings: params.Export, classes: list[str], folder: Path) -> None:
    """Remove what is not to ship, and lay out the rest.

    Raises:
        GraftError: fp32 is not to ship.
    """
    for facts in precisions.values():
        if not facts["shipped"]:
            (folder / facts["file"]).unlink(missing_ok=True)
    if not precisions["fp32"]["shipped"]:
        _empty(folder)
        raise GraftError(f"{precisions['fp32']['reason']}; nothing is shipped")
    files.write_labels(classes, folder / "labels.txt")
    files.write_triton(settings.name, folder / files.model_file("fp32"), classes, folder / "triton")
