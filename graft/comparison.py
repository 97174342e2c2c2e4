"""Two models on the same test pictures: which is better, is that chance, and which pictures changed sides.

In: two opened models and a `Study`. Out: a `Comparison` and, through `write`, a self-contained page.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graft import metrics
from graft.errors import InputError
from graft.evaluation.album import COLUMNS, TILE, Album, encode
from graft.evaluation.stage import predict_all
from graft.evaluation.study import Study
from graft.inference import Model
from graft.metrics import Interval, PairedTest
from graft.report.page import environment
from graft.report.view import compared

Array = npt.NDArray[Any]

PAGE = Path("report/compare.html")
SHOWN = 60  # pictures of each side on the page


@dataclass(frozen=True)
class Moved:
    """A test picture that one model gets right and the other wrong."""

    row: int
    file: str
    label: str
    before: str
    after: str


@dataclass(frozen=True)
class Comparison:
    """`test` asks whether the second model is better; `won` and `lost` are the pictures that changed sides."""

    names: tuple[str, str]
    accuracy: tuple[Interval, Interval]
    log_loss: tuple[float, float]
    test: PairedTest
    won: Sequence[Moved]
    lost: Sequence[Moved]

    @property
    def verdict(self) -> str:
        """One sentence."""
        return compared(self.names, self.test)


def compare(study: Study, models: tuple[Model, Model], names: tuple[str, str], batch: int) -> Comparison:
    """Run both models on the test pictures that `study` holds now.

    Raises:
        InputError: a model has other classes or wants other pictures than are prepared.
    """
    labels, files = study.labels("test"), study.names("test")
    found = [_probabilities(study, model, name, batch) for model, name in zip(models, names, strict=True)]
    for probabilities in found:
        metrics.check(probabilities, labels, study.classes)
    before, after = (probabilities.argmax(axis=1) for probabilities in found)
    sides = before == labels, after == labels

    def moved(rows: Array) -> list[Moved]:
        said = study.classes
        return [Moved(int(i), files[i], said[labels[i]], said[before[i]], said[after[i]]) for i in rows]

    return Comparison(
        names=names,
        accuracy=(metrics.accuracy(found[0], labels), metrics.accuracy(found[1], labels)),
        log_loss=(metrics.log_loss(found[0], labels), metrics.log_loss(found[1], labels)),
        test=metrics.mcnemar(*sides),
        won=moved(np.flatnonzero(~sides[0] & sides[1])),
        lost=moved(np.flatnonzero(sides[0] & ~sides[1])),
    )


def write(study: Study, comparison: Comparison) -> Path:
    """Write the page with the pictures that changed sides, and return where it lies."""
    album = Album()
    sides = {
        kind: [(album.add("test", moved.row), moved) for moved in pictures[:SHOWN]]
        for kind, pictures in (("won", comparison.won), ("lost", comparison.lost))
    }
    images = study.images("test")
    sheet = encode(album.sheet({"test": images}, min(TILE, images.row_shape[0])))
    html = (
        environment()
        .get_template("compare.html.jinja")
        .render(c=comparison, sides=sides, sheet=base64.b64encode(sheet).decode("ascii"), columns=COLUMNS)
    )
    page = study.root / PAGE
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(html, encoding="utf-8")
    return page


def _probabilities(study: Study, model: Model, name: str, batch: int) -> Array:
    images = study.images("test")
    if model.classes != study.classes:
        raise InputError(
            f"{name} knows other classes than data/prepared; compare models of the same classes. "
            f"Received: {', '.join(model.classes[:8])}"
        )
    if tuple(model.image_size) != images.row_shape[:2]:
        raise InputError(
            f"{name} wants pictures of {model.image_size[0]}×{model.image_size[1]} pixels, but data/prepared holds "
            f"{images.row_shape[0]}×{images.row_shape[1]}; prepare them at that size first"
        )
    return predict_all(model.predict, images.batches(batch), len(images), name)
