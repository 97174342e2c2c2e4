"""What a run tells while it works: small frozen records that travel as one line of JSON each.

The working process makes them; the console prints them and the Prefect flow turns them into states,
logs and artifacts. Paths and short texts only: arrays never travel here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Event:
    """The base of all events; `kind` names the class on the wire."""

    kinds: ClassVar[dict[str, type[Event]]] = {}

    def __init_subclass__(cls) -> None:
        Event.kinds[cls.__name__] = cls

    def dumps(self) -> str:
        """The event as one line of JSON."""
        return json.dumps({"kind": type(self).__name__, **asdict(self)}, default=str)

    @staticmethod
    def loads(line: str) -> Event:
        """The event that `dumps` wrote."""
        content = json.loads(line)
        return Event.kinds[content.pop("kind")](**content)


@dataclass(frozen=True)
class Begun(Event):
    """The first event of all: stages may start now, and `mark` is what their processes carry."""

    mark: str


@dataclass(frozen=True)
class Planned(Event):
    """The stages of this run in order: the answer to a flow run that has joined."""

    stages: list[dict[str, Any]]


@dataclass(frozen=True)
class Started(Event):
    """A stage begins: its command runs, or its outputs are restored."""

    stage: str
    attempt: int
    why: str


@dataclass(frozen=True)
class Line(Event):
    """One line of a stage's output."""

    stage: str
    text: str


@dataclass(frozen=True)
class Advanced(Event):
    """How far a long loop of a stage is; `seconds_left` is None while unknown."""

    stage: str
    description: str
    done: int
    total: int
    unit: str
    rate: float
    seconds_left: float | None
    note: str

    def text(self) -> str:
        """One line: how far, how fast, how long yet, and the loop's own note."""
        text = f"{self.description} {self.done}/{self.total} {self.unit}, {self.rate:.0f} {self.unit}/s"
        if self.seconds_left:
            text += f", {_duration(self.seconds_left)} left"
        return f"{text}, {self.note}" if self.note else text


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@dataclass(frozen=True)
class Finished(Event):
    """A stage is done. `state` is Ran, Restored or Unchanged; `why` says why in one line."""

    stage: str
    attempt: int
    state: str
    why: str
    seconds: float


@dataclass(frozen=True)
class Failed(Event):
    """An attempt at a stage failed. `state` is Failed, TimedOut or Cancelled; `why` is one sentence."""

    stage: str
    attempt: int
    state: str
    why: str
    seconds: float
    exit_code: int


@dataclass(frozen=True)
class Reported(Event):
    """The end of a run: what its artifacts show, and the summary the flow returns."""

    summary: dict[str, Any]
    metrics: list[dict[str, Any]] = field(default_factory=list)
    params: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)
    report: str | None = None
    brief: str | None = None


@dataclass(frozen=True)
class Aborted(Event):
    """The run ended before its end. `how` is stopped (by a signal), failed (refused) or killed."""

    why: str
    how: str


@dataclass(frozen=True)
class Ask(Event):
    """From the flow to the worker: run this attempt of a stage now."""

    stage: str
    attempt: int


@dataclass(frozen=True)
class Joined(Event):
    """From the flow to the worker: the flow run exists and decides from here on."""

    flow_run: str


@dataclass(frozen=True)
class Ended(Event):
    """From the flow to the worker: every stage is settled; report."""
