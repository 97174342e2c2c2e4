"""What a person sees of a run in the terminal: a line for each stage, bars on long work, the metrics."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from flows import events
from flows.reasons import UNCHANGED

_COLOURS = {
    "Ran": "green",
    "Restored": "cyan",
    "Unchanged": "dim",
    "Failed": "red",
    "TimedOut": "red",
    "Cancelled": "yellow",
}
# Where nothing can be redrawn, a long loop says where it is this often.
LINE_SECONDS = 10.0
# How many numbers of a metrics file are worth the end of a run: a file begins with its main ones.
METRICS = 8


class Screen:
    """Prints events as they come. Made before stages run, it keeps the real stdout whatever they redirect."""

    def __init__(self) -> None:
        self._console = Console(file=os.fdopen(os.dup(1), "w", encoding="utf-8"), highlight=False, soft_wrap=True)
        self._live = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._bars: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        self._width = 8

    def say(self, text: str, style: str = "") -> None:
        """One line of our own."""
        self._console.print(escape(text), style=style)

    def begin(self, names: list[str]) -> None:
        """Set the table's width and start what is redrawn."""
        self._width = max([8, *map(len, names)])
        if self._console.is_terminal:
            self._live.start()

    def end(self) -> None:
        """Leave the terminal as it was, without bars."""
        self._live.stop()

    def waiting(self) -> None:
        """All stages are settled; only Prefect has still to write that down."""
        if self._console.is_terminal:
            self._live.add_task("Prefect", total=None, state="is writing the run down")

    def next_steps(self, steps: Iterable[tuple[str, str]]) -> None:
        """What to try after a run: commands, and what each does."""
        self._console.print()
        for number, (command, what) in enumerate(steps):
            self._console.print(f"{'' if number else 'Next:':<6}{command:<26}[dim]{what}[/]")

    def show(self, event: events.Event) -> None:
        """Print one event, once."""
        if isinstance(event, events.Started):
            self._started(event)
        elif isinstance(event, events.Line):
            self._console.print(f"[dim]{escape(event.stage):>{self._width + 10}} │[/dim] {escape(event.text)}")
        elif isinstance(event, events.Advanced):
            self._advanced(event)
        elif isinstance(event, events.Finished | events.Failed):
            self._settled(event)

    def _line(self, stage: str, text: str) -> None:
        self._console.print(f"[dim]{escape(stage):>{self._width + 10}} │[/dim] {escape(text)}")

    def _started(self, event: events.Started) -> None:
        if self._console.is_terminal:
            self._drop(event.stage)
            description = f"{event.stage:<{self._width}}"
            self._bars[event.stage] = self._live.add_task(description, total=None, state=escape(event.why))

    def _advanced(self, event: events.Advanced) -> None:
        text = event.text()
        if event.stage in self._bars:
            bar = self._bars[event.stage]
            self._live.update(bar, completed=event.done, total=event.total, state=escape(text))
        elif not self._console.is_terminal and self._due(event):
            self._line(event.stage, text)

    def _due(self, event: events.Advanced) -> bool:
        now = time.monotonic()
        last = self._said.setdefault(event.stage, now)
        if now - last < LINE_SECONDS:
            return False
        self._said[event.stage] = now
        return True

    def _drop(self, stage: str) -> None:
        if stage in self._bars:
            self._live.remove_task(self._bars.pop(stage))

    def _settled(self, event: events.Finished | events.Failed) -> None:
        self._drop(event.stage)
        colour = _COLOURS.get(event.state, "")
        seconds = f"{event.seconds:6.1f} s" if event.seconds >= 0.05 or event.state != "Unchanged" else ""
        self._console.print(
            f"[{colour}]{event.state:<9}[/] {escape(event.stage):<{self._width}} "
            f"{seconds:>9}  [dim]{escape(event.why)}[/dim]"
        )

    def unchanged(self, names: list[str]) -> None:
        """A line for each stage of a run that has nothing to do."""
        for name in names:
            self._settled(events.Finished(name, 1, "Unchanged", UNCHANGED, 0.0))

    def plan(self, stages: list[tuple[str, tuple[str, ...], str | None]]) -> None:
        """What a run would do: for each stage its name, its needs and the reason, if any."""
        width = max([8, *(len(name) for name, _, _ in stages)])
        moving: set[str] = set()
        for name, needs, reason in stages:
            upstream = [need for need in needs if need in moving]
            if reason or upstream:
                moving.add(name)
                why = reason or f"{upstream[0]} may change what it reads"
                self._console.print(f"[yellow]to do    [/] {escape(name):<{width}}  {escape(why)}")
            else:
                self._console.print(f"[dim]Unchanged {escape(name):<{width}}[/]")
        done = "Nothing to do." if not moving else f"{len(moving)} of {len(stages)} stages to do: graft run"
        self._console.print(done)

    def metrics(self, files: dict[str, Any]) -> None:
        """The main metrics: the first numbers of each metrics file."""
        table = Table(box=None, pad_edge=False, show_header=False)
        for file, values in files.items():
            for name, value in list(values.items())[:METRICS]:
                table.add_row(escape(name), f"{value:.4f}" if isinstance(value, float) else str(value), f"[dim]{file}")
            if len(values) > METRICS:
                table.add_row("[dim]…[/]", "", f"[dim]{len(values) - METRICS} more in {escape(file)}")
        if table.row_count:
            self._console.print()
            self._console.print(table)

    def results(self, paths: dict[str, Path]) -> None:
        """Where the things lie that a run makes for people."""
        width = max(map(len, paths), default=0)
        for name, path in paths.items():
            self._console.print(f"[bold]{escape(name):<{width}}[/bold]  {escape(os.fspath(path))}")
