"""The findings as data for `dvc plots`, in the columns that DVC's own templates and the editor extension expect."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.evaluation.corruptions import CORRUPTIONS, STRENGTHS

Array = npt.NDArray[Any]

ROC_STEPS = 101  # a point a percent of false positives


def write_plots(folder: Path, record: Mapping[str, Any], labels: Array, predicted: Array) -> None:
    """Write one file a plot below `folder`; `labels` and `predicted` are N class numbers of the test split.

    confusion.csv      actual, predicted: a row a picture         (templates confusion, confusion_normalized)
    history/*.csv      epoch, loss, accuracy, val_loss, …         (template linear)
    calibration.csv    confidence, accuracy, images               (template linear)
    roc.csv            false_positive_rate, true_positive_rate    (template simple): the mean of the classes' curves
    per_class.csv      class, images, precision, recall, f1       (template bar_horizontal)
    robustness.csv     strength, a column a corruption            (template linear)

    DVC draws one line through all rows of a column, so that no column holds two curves.
    """
    names = record["classes"]
    actual = ({"actual": names[a], "predicted": names[p]} for a, p in zip(labels, predicted, strict=True))
    _write(folder / "confusion.csv", ("actual", "predicted"), actual)
    for part, epochs in record["history"].items():
        _write_history(folder / "history" / f"{part}.csv", epochs)
    _write(folder / "calibration.csv", ("confidence", "accuracy", "images"), _calibration(record))
    _write(folder / "roc.csv", ("false_positive_rate", "true_positive_rate"), _roc(record))
    _write(folder / "per_class.csv", ("class", "images", "precision", "recall", "f1"), _per_class(record))
    _write(folder / "robustness.csv", ("strength", *CORRUPTIONS), _robustness(record))


def _write_history(path: Path, epochs: list[dict[str, Any]]) -> None:
    columns = list(epochs[0]) if epochs else ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"]
    _write(path, columns, epochs)


def _calibration(record: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for item in record["calibration"]["exported"]["bins"]:
        yield {key: item[key] for key in ("confidence", "accuracy", "images")}


def _roc(record: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """The classes' curves averaged at each percent of false positives (Fawcett 2006, vertical averaging)."""
    curves = record["roc"]
    for false_rate in np.linspace(0, 1, ROC_STEPS) if curves else ():
        rates = [np.interp(false_rate, curve["false_rate"], curve["true_rate"]) for curve in curves]
        yield {"false_positive_rate": false_rate, "true_positive_rate": float(np.mean(rates))}


def _per_class(record: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for row in record["per_class"]:
        yield {"class": row["name"]} | {key: row[key] for key in ("images", "precision", "recall", "f1")}


def _robustness(record: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    robustness = record["robustness"]
    for strength in range(STRENGTHS + 1) if robustness else ():
        row = {
            name: (points[strength - 1] if strength else robustness["clean"])["value"]
            for name, points in robustness["curves"].items()
        }
        yield {"strength": strength} | row


def _write(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: rounded(value) for key, value in row.items()} for row in rows)


def rounded(value: Any, digits: int = 6) -> Any:
    """`value` with every float inside it rounded: the last bits of a sum are noise."""
    if isinstance(value, float | np.floating):
        return round(float(value), digits)
    if isinstance(value, Mapping):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    return value


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write `value` with rounded floats, the same bytes for the same value; NaN is refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rounded(value), indent=indent, allow_nan=False) + "\n", encoding="utf-8")
