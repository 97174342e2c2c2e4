"""Challenger against champion: the prepared pictures, both models through ONNX Runtime, and the gate's decision.

In: the registry and the pipeline's outputs. Out: objections to a delivery, a `Decision`, and the record that a
version keeps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flows.registry import Store, line
from graft import drift, gate, intake
from graft.errors import GraftError
from graft.evaluation.study import Study
from graft.gate import Decision
from graft.inference import Images, Model, open_model
from graft.params import Params
from graft.registry import PROD, Version
from graft.traffic import Traffic

Array = npt.NDArray[Any]

PREPARED = "data/prepared"


@dataclass(frozen=True)
class Champion:
    """The live version, opened."""

    version: Version
    model: Model


def champion(store: Store, folder: Path, settings: Params) -> Champion | None:
    """The live model, its file brought into `folder`; None where nothing is live yet.

    Raises:
        GraftError: it no longer loads.
    """
    now = store.read()
    current = now.current()
    if current is None:
        return None
    version = now.version(current.version)
    try:
        return Champion(version, open_model(store.file(version, folder), threads=settings.runtime.threads))
    except GraftError as error:
        raise GraftError(
            f"the live model {version.name} no longer loads, so nothing can be compared with it ({error}); "
            "bring its file back (`dvc fetch`), or choose another version: `graft versions`, `graft promote`"
        ) from error


def objections(study: Study, live: Champion, settings: Params) -> list[str]:
    """Why the delivery in `data/prepared` should not be trained on."""
    before: Mapping[str, int] = live.version.record.get("images") or dict.fromkeys(live.model.classes, 1)
    found = intake.objections(before, intake.class_counts(study), settings.retrain)
    if found or not comparable(study, live):
        return found or ["the pictures have another size than the live model wants"]
    labels = study.labels("test")
    correct = predictions(study, live.model, settings).argmax(axis=1) == labels
    expected = live.version.record.get("accuracy")
    said = intake.contradiction(correct, float(expected), settings.retrain) if expected is not None else None
    return [said] if said else []


def comparable(study: Study, live: Champion) -> bool:
    """Whether the live model knows the classes and the size of the prepared pictures."""
    size = study.images("test").row_shape[:2]
    return live.model.classes == study.classes and tuple(live.model.image_size) == tuple(size)


def judge(study: Study, store: Store, live: Champion | None, settings: Params) -> tuple[Decision, dict[str, Any]]:
    """The gate's decision on the exported file in the workspace, and the record of it as a version."""
    challenger = open_model(study.root / store.model_file, threads=settings.runtime.threads)
    labels = study.labels("test")
    found = predictions(study, challenger, settings)
    rival = predictions(study, live.model, settings) if live is not None and comparable(study, live) else None
    unseen = _unseen(study, store, live.version) if live is not None and rival is not None else None
    decision = gate.decide(found, rival, labels, study.classes, settings.gate, unseen)
    reference = Traffic(challenger.classes)
    start = 0
    for batch in study.images("test").batches(settings.evaluate.batch_size):
        reference.add(batch, found[start : start + len(batch)])
        start += len(batch)
    record = {
        "accuracy": decision.challenger.value if decision.challenger else None,
        "data": study.dataset.get("fingerprint"),
        "decision": decision.as_json(),
        "images": intake.class_counts(study),
        "metrics": _metrics(study.root),
        "probe": probe_answer(challenger),
        "reference": reference.as_json(),
        "test_images": len(labels),
    }
    return decision, record


def predictions(study: Study, model: Model, settings: Params) -> Array:
    """N×C probabilities of the test pictures."""
    batches = study.images("test").batches(settings.evaluate.batch_size)
    return np.concatenate(
        [model.predict(batch) for batch in batches] or [np.empty((0, len(model.classes)), np.float32)]
    )


def probe(height: int, width: int) -> Images:
    """One picture that any model answers and no cache expects: 1×H×W×3 uint8, a ramp."""
    return (np.arange(height * width * 3) % 251).astype(np.uint8).reshape(1, height, width, 3)


def probe_answer(model: Model) -> list[float]:
    """What `model` says to the probe: a server that serves this file says the same."""
    return [round(float(share), 6) for share in model.predict(probe(*model.image_size))[0]]


def seen_drift(store: Store, settings: Params) -> drift.Drift | None:
    """How far what servers were asked since the live model's promotion is from its test pictures."""
    now = store.read()
    current = now.current()
    if current is None:
        return None
    recorded = now.version(current.version).record.get("reference")
    if not recorded:
        return None
    reference = Traffic.from_json(recorded)
    numbers = [move.number for move in now.assignments if move.version == current.version and move.stage == PROD]
    files = [
        file for number in numbers for file in sorted((store.root / "monitoring" / PROD / str(number)).glob("*.json"))
    ]
    days = sorted({file.name[:10] for file in files})[-settings.retrain.drift_days :]
    sums = (Traffic.from_json(json.loads(file.read_text(encoding="utf-8"))) for file in files if file.name[:10] in days)
    return drift.look(reference, drift.total(reference.classes, sums), settings.retrain)


def _unseen(study: Study, store: Store, version: Version) -> Array | None:
    """N bool: the test pictures that the live model was not trained on; all where none was.

    New pictures shuffle the splits anew, and a model recites what it was trained on.

    Raises:
        GraftError: what it was trained on cannot be had, from the cache or the remote.
    """
    try:
        seen = set(_trained_on(store.root, version))
    except Exception as error:  # caches and remotes raise what their libraries raise
        raise GraftError(
            f"what the live model {version.name} was trained on cannot be read, so no fair test is possible "
            f"({line(error)}); run `dvc fetch --rev {version.commit[:12]}`"
        ) from error
    fresh: list[bool] = []
    for batch in study.images("test").batches(intake.BATCH):
        fresh += [intake.fingerprint(row) not in seen for row in batch]
    return np.array(fresh)


def _trained_on(root: Path, version: Version) -> Iterator[bytes]:
    from dvc.api import DVCFileSystem

    files = DVCFileSystem(str(root), rev=version.commit)
    for path in sorted(files.find(PREPARED)):
        if Path(path).name.startswith(("train.images-", "validation.images-")):
            with files.open(path, "rb") as shard:
                for row in np.load(shard, allow_pickle=False):
                    yield intake.fingerprint(row)


def _metrics(root: Path) -> dict[str, Any]:
    try:
        found = json.loads((root / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}
