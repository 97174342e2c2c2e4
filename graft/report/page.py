"""The page itself: findings and pictures through `page.html.jinja` into one file without outside references."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from graft.differences import flatten
from graft.evaluation.album import COLUMNS
from graft.evaluation.corruptions import STRENGTHS
from graft.metrics import wilson
from graft.report import view
from graft.report.changes import Changes
from graft.report.charts import Axis, Frame, Series, course, line_chart, nice_axis

HERE = Path(__file__).parent
MATRIX_CLASSES = 25  # that a confusion matrix can show and still be read
SHARES = Axis("", 0, 1, (0, 0.25, 0.5, 0.75, 1), percent=True)
TITLES = {"jpeg": "JPEG"}
PART_NAMES = {"head": "Training the head", "finetuned": "Fine-tuning"}


def render(record: Mapping[str, Any], sheet: bytes, changes: Changes, speed: Mapping[str, Any] | None) -> str:
    """The page's HTML: `sheet` is the WebP album that `record["pictures"]` numbers, `speed` is this machine's."""
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            r=record,
            view=view,
            js=_source("page.js"),
            sheet=base64.b64encode(sheet).decode("ascii"),
            columns=COLUMNS,
            headline=view.headline(record),
            shown=view.shown_classes(record, MATRIX_CLASSES),
            charts=_charts(record),
            changes=changes,
            speed=speed,
            parameters=flatten(record["model"]["provenance"].get("parameters", {})),
        )
    )


def environment() -> jinja2.Environment:
    """Templates of this folder with the page's style sheet and ways to write numbers; all else is escaped."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "percent": view.percent,
        "signed": view.signed,
        "number": view.number,
        "size": view.size,
        "short": view.short,
        "plain": view.plain,
    }
    made.globals["css"] = _source("page.css")
    return made


def _source(name: str) -> Markup:
    return Markup((HERE / name).read_text(encoding="utf-8"))  # noqa: S704 our own file, no person's input


def _charts(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "history": [_history(name, epochs) for name, epochs in record["history"].items() if epochs],
        "calibration": _calibration(record),
        "roc": _roc(record),
        "robustness": _robustness(record),
    }


def _history(part: str, epochs: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy and loss of one training, each for training and validation pictures."""
    ticks = sorted({epochs[0]["epoch"], epochs[len(epochs) // 2]["epoch"], epochs[-1]["epoch"]})
    first, last = epochs[0]["epoch"], max(epochs[-1]["epoch"], epochs[0]["epoch"] + 1)
    across = Axis("epoch", first, last, ticks)
    drawn = {}
    for name, percent in (("accuracy", True), ("loss", False)):
        pairs = (("train", "b", name), ("validation", "a", f"val_{name}"))
        lines = [
            Series(label, [(epoch["epoch"], epoch[key]) for epoch in epochs if epoch.get(key) is not None], kind)
            for label, kind, key in pairs
        ]
        lines = [line for line in lines if line.points]
        if lines:
            values = [value for line in lines for _, value in line.points]
            up = nice_axis(name, values, percent, 1.0 if percent else None)
            title = course(f"{PART_NAMES[part]}, {name} by epoch", up, lines)
            drawn[name] = line_chart(title, Frame(across, up), lines)
    return {"name": PART_NAMES[part], "epochs": len(epochs), "charts": drawn}


def _calibration(record: Mapping[str, Any]) -> Markup:
    total = record["metrics"]["test_images"]
    lines = [
        Series(
            kind,
            [(item["confidence"], item["accuracy"]) for item in found["bins"]],
            style,
            band=_calibration_band(found["bins"]) if style == "a" else (),
            dots=[2 + 6 * (item["images"] / total) ** 0.5 for item in found["bins"]],
            notes=[_calibration_note(kind, item) for item in found["bins"]],
        )
        for (kind, found), style in zip(view.calibration_rows(record), ("a", "b"), strict=False)
    ]
    across = Axis("confidence", 0, 1, SHARES.ticks, percent=True)
    return line_chart("Accuracy by confidence", Frame(across, SHARES), lines, diagonal=True)


def _calibration_band(bins: list[dict[str, Any]]) -> list[tuple[float, float]]:
    intervals = [wilson(round(item["accuracy"] * item["images"]), item["images"]) for item in bins]
    return [(interval.low, interval.high) for interval in intervals]


def _calibration_note(kind: str, item: Mapping[str, Any]) -> str:
    sure, right = view.percent(item["confidence"]), view.percent(item["accuracy"])
    return f"{kind}: {sure} sure, {right} right, pictures: {item['images']:,}"


def _roc(record: Mapping[str, Any]) -> Markup | None:
    if not record["roc"]:
        return None
    lines = [
        Series(curve["class"], list(zip(curve["false_rate"], curve["true_rate"], strict=True)), "thin")
        for curve in record["roc"]
    ]
    across = Axis("false positive rate", 0, 1, SHARES.ticks, percent=True)
    return line_chart("ROC curve of each class", Frame(across, SHARES), lines, diagonal=True)


def _robustness(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One small chart a corruption, strength 0 being the clean pictures."""
    found = []
    robustness = record["robustness"] or {"curves": {}}
    across = Axis("strength", 0, STRENGTHS, range(STRENGTHS + 1))
    for name, curve in robustness["curves"].items():
        whole = [robustness["clean"], *curve]
        line = Series(
            name,
            [(strength, point["value"]) for strength, point in enumerate(whole)],
            "a",
            band=[(point["low"], point["high"]) for point in whole],
            dots=[2.5] * len(whole),
            notes=[f"strength {strength}: {view.percent(point['value'])}" for strength, point in enumerate(whole)],
        )
        title = course("Accuracy by strength", SHARES, [line])
        chart = line_chart(title, Frame(across, SHARES, 300, 200), [line])
        found.append(
            {
                "name": TITLES.get(name, name),
                "points": curve,
                "mean": sum(point["value"] for point in curve) / len(curve),
                "chart": chart,
            }
        )
    return found
