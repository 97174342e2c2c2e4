"""Progress of long loops, as log records: who listens decides how it looks.

A record of the logger `graft.progress` carries the attribute `progress`, a `Progress`. The flow turns it
into a bar and a Prefect artifact; where nobody does, it is one line of text every few seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

logger = logging.getLogger("graft.progress")

T = TypeVar("T")

# Often enough for a bar to look alive, seldom enough to cost nothing.
INTERVAL_SECONDS = 0.2


@dataclass(frozen=True)
class Progress:
    """Where a loop stands: `done` of `total` units after `seconds`, with a note such as the loss."""

    description: str
    done: int
    total: int
    unit: str
    seconds: float
    note: str = ""

    @property
    def rate(self) -> float:
        """Units a second so far."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float:
        """Seconds until the end at the rate so far."""
        return (self.total - self.done) / self.rate if self.rate > 0 else float("inf")

    def __str__(self) -> str:
        text = f"{self.description}: {self.done}/{self.total} {self.unit}, {self.rate:.0f} {self.unit}/s"
        if self.done < self.total:
            text += f", {self.seconds_left:.0f} s left"
        return f"{text}, {self.note}" if self.note else text


class Meter:
    """Counts the units of one loop and reports now and then, and always at the end."""

    def __init__(self, description: str, total: int, unit: str = "images") -> None:
        self._description, self._total, self._unit = description, total, unit
        self._done = 0
        self._start = time.monotonic()
        self._reported = float("-inf")

    def advance(self, units: int, note: str = "") -> None:
        """Add `units` to what is done."""
        self._done += units
        now = time.monotonic()
        if self._done < self._total and now - self._reported < INTERVAL_SECONDS:
            return
        self._reported = now
        state = Progress(self._description, self._done, self._total, self._unit, now - self._start, note)
        logger.info("%s", state, extra={"progress": state})


def track(items: Iterable[T], description: str, total: int, unit: str = "images") -> Iterator[T]:
    """Yield `items`, each counting as one unit of `total`."""
    meter = Meter(description, total, unit)
    for item in items:
        yield item
        meter.advance(1)
