"""The whole evaluation of an exported model: from pictures and files to one record of findings.

In: a `Study` and a way to predict with the exported file. Out: `Findings`: the record behind metrics, plots
and page, the test probabilities and the album of pictures. Nothing in it depends on the clock or the machine's
speed, so that two runs write the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from graft import metrics
from graft.calibration import apply_temperature, fit_temperature
from graft.errors import InputError
from graft.evaluation import baselines, label_errors, near_duplicates
from graft.evaluation.album import TILE, Album
from graft.evaluation.heatmaps import Predict, occlusion
from graft.evaluation.projection import flat_map, project
from graft.evaluation.robustness import curves, stratified
from graft.evaluation.study import Study, first_rows
from graft.params import Params
from graft.progress import Meter

Array = npt.NDArray[Any]

FORMAT = 3
ROC_POINTS = 101  # of each curve on the page: one a percent
CELL_PICTURES = 8  # of each kind of mistake
HIT_PICTURES = 4  # of each class's hits
CONFUSION_PICTURES = 900  # of all cells together
LISTED = 50  # quarantined files and duplicates named in the record
FEATURE_COMPONENTS = 64  # that a linear model judges training labels by


@dataclass(frozen=True)
class Findings:
    """`record` is plain JSON; `probabilities` N×C float32 of the test split; `album` the pictures it refers to."""

    record: dict[str, Any]
    probabilities: Array
    album: Album


@dataclass(frozen=True)
class Judged:
    """The test split as the exported file sees it."""

    probabilities: Array
    labels: Array
    names: Sequence[str]
    classes: Sequence[str]

    @cached_property
    def predicted(self) -> Array:
        """N class numbers."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @cached_property
    def confidence(self) -> Array:
        """N probabilities of the predicted class."""
        return np.asarray(self.probabilities.max(axis=1))

    @cached_property
    def correct(self) -> Array:
        """N booleans."""
        return np.asarray(self.predicted == self.labels)


def evaluate(study: Study, predict: Predict, params: Params) -> Findings:
    """Measure everything that `params.evaluate` asks for on the file behind `predict`.

    Raises:
        InputError: an input is missing, or there are no test pictures.
        GraftError: the model's probabilities are not probabilities.
    """
    knobs, album = params.evaluate, Album()
    judged = _judge(study, predict, knobs.batch_size)
    calibration = _calibration(study, judged, predict, params)
    contenders = _contenders(study, judged, params)
    record: dict[str, Any] = {
        "format": FORMAT,
        "classes": list(judged.classes),
        "data": _data(study),
        "contenders": contenders,
        "history": {part: study.history(part) for part in ("head", "finetuned")},
        "calibration": calibration,
        "confusion": _confusion(judged, album),
        "roc": _roc(judged),
        "per_class": [
            asdict(score) for score in metrics.per_class(judged.probabilities, judged.labels, judged.classes)
        ],
        "gallery": _gallery(study, judged, predict, album, knobs.gallery),
        "robustness": _robustness(study, judged, predict, params),
        "precisions": _precisions(study),
        "left_out": study.left_out,
        "label_errors": _label_errors(study, judged, calibration, album, params),
        "near_duplicates": _near_duplicates(study, album, params),
        "map": _map(study, judged, album, params),
    }
    record["metrics"] = summarise(judged, record)
    record["notes"] = _notes(judged)
    record["pictures"] = _pictures(study, judged, album)
    return Findings(record, judged.probabilities, album)


def predict_all(predict: Predict, batches: Iterable[Array], total: int, description: str) -> Array:
    """N×C float32 predictions of all `batches`, with progress."""
    meter, found = Meter(description, total), []
    for batch in batches:
        found.append(predict(batch))
        meter.advance(len(batch))
    return np.concatenate(found) if found else np.empty((0, 0), np.float32)


def _judge(study: Study, predict: Predict, batch: int) -> Judged:
    images, labels = study.images("test"), study.labels("test")
    if not len(labels):
        raise InputError(
            "the test split is empty, so nothing can be measured; raise data.test_fraction. Received: 0 images"
        )
    probabilities = predict_all(predict, images.batches(batch), len(images), "test images")
    metrics.check(probabilities, labels, study.classes)
    return Judged(probabilities, labels, study.names("test"), study.classes)


def _fitted_temperature(study: Study, predict: Predict, params: Params) -> float | None:
    labels = study.labels("validation")
    chosen = stratified(labels, params.evaluate.calibration_images, params.seed)
    if not len(chosen):
        return None
    images, size = study.images("validation"), params.evaluate.batch_size
    batches = (images.take(chosen[start : start + size]) for start in range(0, len(chosen), size))
    probabilities = predict_all(predict, batches, len(chosen), "validation images")
    metrics.check(probabilities, labels[chosen], study.classes)
    return fit_temperature(probabilities, labels[chosen])


def _contenders(study: Study, judged: Judged, params: Params) -> list[dict[str, Any]]:
    """From knowing nothing to the exported file: accuracy, and the paired test of the exported file against each."""
    train = study.labels("train")
    guesses = {"commonest class": baselines.commonest_class(train, len(judged.labels))}
    if "pixels" in params.evaluate.baselines:
        guesses["pixels alone"] = baselines.pixels(study.images("train"), train, study.images("test"), params.seed)
    if "random" in params.evaluate.baselines:
        guesses["random weights"] = baselines.random_weights(params, study.root).argmax(axis=1)
    frozen = baselines.frozen_head(study.head, first_rows(study.features("test"), len(judged.labels), 1024))
    guesses["frozen head"] = frozen.argmax(axis=1)
    guesses["exported"] = judged.predicted
    found = []
    for name, predicted in guesses.items():
        correct = predicted == judged.labels
        test = None if name == "exported" else asdict(metrics.mcnemar(correct, judged.correct))
        found.append({"name": name, **asdict(metrics.wilson(int(correct.sum()), len(correct))), "against": test})
    return found


def _calibration(study: Study, judged: Judged, predict: Predict, params: Params) -> dict[str, Any]:
    """How honest the confidence is: of the file as `exported`, and `other`wise.

    That is without the temperature which is `inside` the file or, where none is, with one fitted on validation
    pictures; None without such pictures.
    """
    inside = study.temperature
    temperature = inside or _fitted_temperature(study, predict, params)
    other = None
    if temperature is not None:
        other = _honesty(apply_temperature(judged.probabilities, 1 / inside if inside else temperature), judged.labels)
    exported = _honesty(judged.probabilities, judged.labels)
    return {"temperature": temperature, "inside": inside is not None, "exported": exported, "other": other}


def _honesty(probabilities: Array, labels: Array) -> dict[str, Any]:
    bins = metrics.reliability(probabilities, labels)
    return {
        "bins": [asdict(item) for item in bins],
        "ece": metrics.expected_calibration_error(bins),
        "log_loss": metrics.log_loss(probabilities, labels),
        "brier": metrics.brier(probabilities, labels),
    }


def _confusion(judged: Judged, album: Album) -> dict[str, Any]:
    counts = metrics.confusion(judged.predicted, judged.labels, len(judged.classes))
    cells: dict[str, list[int]] = {}
    mistakes_first = sorted(np.argwhere(counts).tolist(), key=lambda cell: (cell[0] == cell[1], -counts[tuple(cell)]))
    left = CONFUSION_PICTURES
    for true, predicted in mistakes_first:
        rows = np.flatnonzero((judged.labels == true) & (judged.predicted == predicted))
        rows = rows[np.argsort(-judged.confidence[rows], kind="stable")]
        shown = rows[: min(left, HIT_PICTURES if true == predicted else CELL_PICTURES)]
        cells[f"{true},{predicted}"] = [album.add("test", int(row)) for row in shown]
        left -= len(shown)
    return {"counts": counts.tolist(), "cells": cells}


def _roc(judged: Judged) -> list[dict[str, Any]]:
    """Curves of the classes that have one, thinned to one point a percent of false positives."""
    found = []
    for index, name in enumerate(judged.classes):
        curve = metrics.roc(judged.probabilities[:, index], judged.labels == index)
        if curve is None:
            continue
        kept = _thinned(*curve)
        found.append({"class": name, "false_rate": curve[0][kept].tolist(), "true_rate": curve[1][kept].tolist()})
    return found


def _thinned(false_rate: Array, true_rate: Array) -> Array:
    """Indices of at most `ROC_POINTS` + 2 points of a curve: the last in each percent and the rise at its start."""
    step = np.floor(false_rate * (ROC_POINTS - 1)).astype(int)
    last = np.flatnonzero(np.append(step[1:] != step[:-1], True))
    return np.unique([0, np.flatnonzero(false_rate == 0)[-1], *last])


def _gallery(study: Study, judged: Judged, predict: Predict, album: Album, count: int) -> dict[str, Any]:
    """The most confident mistakes and the least confident hits, with heat maps for the predicted class."""
    wrong, right = np.flatnonzero(~judged.correct), np.flatnonzero(judged.correct)
    lists = {
        "mistakes": wrong[np.argsort(-judged.confidence[wrong], kind="stable")][:count],
        "hits": right[np.argsort(judged.confidence[right], kind="stable")][:count],
    }
    meter = Meter("heat maps", sum(map(len, lists.values())))
    images = study.images("test")
    found: dict[str, list[dict[str, Any]]] = {}
    for name, rows in lists.items():
        found[name] = []
        for row, picture in zip(rows, images.take(rows), strict=True):
            heat = occlusion(predict, picture, int(judged.predicted[row]))
            found[name].append({"picture": album.add("test", int(row)), "heat": heat.tolist()})
            meter.advance(1)
    return found


def _robustness(study: Study, judged: Judged, predict: Predict, params: Params) -> dict[str, Any] | None:
    if not params.evaluate.corruption_images:
        return None
    chosen = stratified(judged.labels, params.evaluate.corruption_images, params.seed)
    found = curves(predict, study.images("test").take(chosen), judged.labels[chosen], params.seed)
    return {
        "images": len(chosen),
        "clean": asdict(metrics.accuracy(judged.probabilities[chosen], judged.labels[chosen])),
        "curves": {name: [asdict(point) for point in points] for name, points in found.items()},
    }


def _precisions(study: Study) -> list[dict[str, Any]]:
    """Each exported file on all test pictures, as the export stage measured it with ONNX Runtime before it shipped."""
    return [
        {
            "name": name,
            "images": facts["test_images"],
            **asdict(metrics.wilson(round(facts["accuracy"] * facts["test_images"]), facts["test_images"])),
            "agreement": facts["test_agreement"],
            "difference": f"{facts['max_difference']:.1g}",  # as words: numbers are rounded to six places
            "bytes": facts["bytes"],
        }
        for name, facts in study.exported.items()
    ]


def _label_errors(
    study: Study, judged: Judged, calibration: Mapping[str, Any], album: Album, params: Params
) -> dict[str, Any]:
    """Suspects of the test split by the exported file, of the training split by a linear model on frozen features."""
    train = study.labels("train")
    # At its own temperature: an overconfident model would take every mistake of its own for a wrong label.
    offered = None if calibration["inside"] else calibration["temperature"]
    honest = apply_temperature(judged.probabilities, offered or 1.0)
    rows = project(study.features("train"), len(train), FEATURE_COMPONENTS, params.seed)
    by_split = {
        "test": label_errors.suspects(honest, judged.labels),
        "train": label_errors.suspects(label_errors.out_of_fold(rows, train, len(judged.classes)), train),
    }
    ranked = [(split, suspect) for split, suspects in by_split.items() for suspect in suspects]
    ranked.sort(key=lambda pair: -pair[1].margin)
    listed = [
        {**asdict(suspect), "picture": album.add(split, suspect.index)}
        for split, suspect in ranked[: 2 * params.evaluate.gallery]
    ]
    return {"counts": {split: len(suspects) for split, suspects in by_split.items()}, "listed": listed}


def _near_duplicates(study: Study, album: Album, params: Params) -> dict[str, Any]:
    others = {split: study.images(split) for split in ("train", "validation")}
    found = near_duplicates.pairs(study.images("test"), others, params.evaluate.near_duplicate)
    listed = [
        {
            "test": album.add("test", pair.test),
            "other": album.add(pair.split, pair.other),
            "similarity": pair.similarity,
            "mirrored": pair.mirrored,
        }
        for pair in found[: params.evaluate.gallery]
    ]
    return {"least": params.evaluate.near_duplicate, "count": len(found), "listed": listed}


def _map(study: Study, judged: Judged, album: Album, params: Params) -> dict[str, Any] | None:
    chosen = stratified(judged.labels, params.evaluate.map_images, params.seed)
    if len(chosen) < 3:
        return None
    positions = flat_map(study.features("test").take(chosen), params.evaluate.map, params.seed)
    points = [[float(x), float(y), album.add("test", int(row))] for (x, y), row in zip(positions, chosen, strict=True)]
    return {"method": params.evaluate.map, "points": points}


def summarise(judged: Judged, record: dict[str, Any]) -> dict[str, Any]:
    """What `dvc metrics` shows: flat, and nothing that a second run would give differently."""
    scores = metrics.per_class(judged.probabilities, judged.labels, judged.classes)
    macro, weighted = metrics.averages(scores)
    share, calibration = metrics.accuracy(judged.probabilities, judged.labels), record["calibration"]
    found: dict[str, Any] = {
        "accuracy": share.value,
        "accuracy_low": share.low,
        "accuracy_high": share.high,
        **{f"{name}_macro": value for name, value in asdict(macro).items()},
        **{f"{name}_weighted": value for name, value in asdict(weighted).items()},
        **{name: calibration["exported"][name] for name in ("log_loss", "brier", "ece")},
        "roc_auc_macro": metrics.mean_known([score.roc_auc for score in scores]),
        "average_precision_macro": metrics.mean_known([score.average_precision for score in scores]),
        "test_images": len(judged.labels),
    }
    if len(judged.classes) >= metrics.TOP5_CLASSES:
        found["top5_accuracy"] = metrics.top_k(judged.probabilities, judged.labels, 5)
    if calibration["other"]:
        kind = "unscaled" if calibration["inside"] else "scaled"
        found["temperature"] = calibration["temperature"]
        found |= {f"{name}_{kind}": calibration["other"][name] for name in ("ece", "log_loss")}
    if record["robustness"]:
        points = [point["value"] for curve in record["robustness"]["curves"].values() for point in curve]
        found["corrupted_accuracy"] = sum(points) / len(points)
    found["label_suspects"] = sum(record["label_errors"]["counts"].values())
    found["near_duplicates"] = record["near_duplicates"]["count"]
    found["baseline"] = {
        f"{contender['name'].replace(' ', '_')}_accuracy": contender["value"] for contender in record["contenders"][:-1]
    }
    found["precisions"] = {row["name"]: {"accuracy": row["value"]} for row in record["precisions"]}
    return {name: value for name, value in found.items() if value is not None}


def _notes(judged: Judged) -> list[str]:
    """What a reader must know before trusting the numbers, one sentence each."""
    notes = []
    missing = [name for index, name in enumerate(judged.classes) if not (judged.labels == index).any()]
    present = len(judged.classes) - len(missing)
    if missing:
        notes.append(
            f"No test pictures of {len(missing)} of {len(judged.classes)} classes ({', '.join(missing[:5])}"
            f"{', …' if len(missing) > 5 else ''}): averages are over the other {present}."
        )
    if present == 1:
        notes.append("All test pictures are of one class: ROC curves and average precision need two.")
    if len(judged.labels) < 100:
        notes.append(f"Only {len(judged.labels)} test pictures: read the intervals before the numbers.")
    return notes


def _data(study: Study) -> dict[str, Any]:
    dataset = study.dataset
    return {
        "source": dataset["source"],
        "image_size": dataset["image_size"],
        "splits": dataset["splits"],
        "fingerprint": dataset["fingerprint"],
        "quarantined": {"count": len(dataset["quarantined"]), "listed": dataset["quarantined"][:LISTED]},
        "duplicates": {"count": len(dataset["duplicates"]), "listed": dataset["duplicates"][:LISTED]},
    }


def _pictures(study: Study, judged: Judged, album: Album) -> dict[str, Any]:
    """Facts of every picture in the album, by number: split, file, label, and for the test split what was predicted."""
    names = {split: study.names(split) for split in {split for split, _ in album.pictures}}
    labels = {split: study.labels(split) for split in names}
    items = []
    for split, row in album.pictures:
        item: dict[str, Any] = {
            "split": split,
            "row": row,
            "file": names[split][row],
            "label": int(labels[split][row]),
        }
        if split == "test":
            item |= {"predicted": int(judged.predicted[row]), "confidence": float(judged.confidence[row])}
        items.append(item)
    return {"tile": min(TILE, study.images("test").row_shape[0]), "items": items}
