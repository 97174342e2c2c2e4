"""`graft init` and `graft pretrain`: a person's own pictures, and the bundled weights made anew."""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from graft import params
from graft.errors import InputError

if TYPE_CHECKING:
    from graft.datasets.sources import Source

# Pictures up to this side are kept at the size the bundled weights were trained on.
SMALL_SIDE = 48
LARGE_SIZE = 64
SAMPLE = 25


def init(root: Path, folder: Path) -> None:
    """Point the project's params.yaml at `folder` (or zip or tar), after a look at what is in it."""
    from graft.datasets.sources import open_source

    path = os.path.relpath(folder.resolve(), root)
    file = root / params.FILE
    text = params.override(file.read_text(encoding="utf-8"), ["data.source=folder", f"data.path={path}"])
    os.chdir(root)
    with open_source(params.parse(text).data) as source:
        size = 32 if _median_side(source) <= SMALL_SIDE else LARGE_SIZE
        classes = ", ".join(source.classes[:6]) + (" …" if len(source.classes) > 6 else "")
        found = f"{len(source.items)} pictures in {len(source.classes)} classes ({classes})"
    params.write(file, params.override(text, [f"data.image_size={size}"]))
    typer.echo(f"Found {found}.")
    typer.echo(f"params.yaml now says data.source=folder, data.path={path}, data.image_size={size}.")
    typer.echo("Next: graft run")


def pretrain(
    root: Path,
    assignments: list[str],
    epochs: int,
    output: Path | None,
    command: str,
) -> None:
    """Train the bundled weights again and write them with their card."""
    from graft import runtime

    text = (root / params.FILE).read_text(encoding="utf-8")
    defaults = ["data.source=cifar10", "data.image_size=32"]
    settings = params.parse(params.override(text, [*defaults, *assignments]))
    runtime.start(settings)
    from graft import pretraining
    from graft.datasets import preparation

    os.chdir(root)
    target = output or Path(pretraining.__file__).parent / "pretrained"
    with tempfile.TemporaryDirectory(prefix="graft-") as scratch, progress_bars():
        description = preparation.prepare(settings, Path(scratch))
        if len(description["classes"]) != pretraining.CLASSES:
            raise InputError(
                f"the bundled weights come from CIFAR-10 and its {pretraining.CLASSES} classes. "
                f"Received: {len(description['classes'])} classes"
            )
        card = pretraining.pretrain(Path(scratch), target, epochs, settings.seed, command)
    typer.echo(f"Test accuracy {card['test_accuracy']:.1%} after {epochs} epochs; written to {target}.")


@contextmanager
def progress_bars() -> Iterator[None]:
    """Show the library's progress records as bars on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
    logger = logging.getLogger("graft.progress")
    with Progress(*columns, console=Console(stderr=True)) as bars:
        handler = _Bars(bars)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)


class _Bars(logging.Handler):
    def __init__(self, bars: Progress) -> None:
        super().__init__()
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def emit(self, record: logging.LogRecord) -> None:
        state = getattr(record, "progress", None)
        if state is None:
            return
        if state.description not in self._tasks:
            self._tasks[state.description] = self._bars.add_task(state.description, total=state.total, state="")
        text = f"{state.rate:.0f} {state.unit}/s, {state.seconds_left:.0f} s left {state.note}"
        self._bars.update(self._tasks[state.description], completed=state.done, total=state.total, state=text)


def _median_side(source: Source) -> float:
    from graft.images import UnreadableImage

    sides = []
    step = max(1, len(source.items) // SAMPLE)
    for index in range(0, len(source.items), step):
        try:
            sides.append(min(source.read(index).shape[:2]))
        except UnreadableImage:
            continue
    return statistics.median(sides) if sides else 0
