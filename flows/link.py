"""The line between the working process and the flow's: events as JSON lines over a local socket pair.

Sending never blocks (a thread writes), so that a stage does not wait for a flow that is still starting.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from flows.events import Event


@dataclass(frozen=True)
class Request:
    """What a run is asked to do: the same for the command line, the flow and the worker."""

    repo: str
    targets: tuple[str, ...] = ()
    force: bool = False
    isolate: bool = False
    wait: bool = True


class Link:
    """One end of the line."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._outbox: queue.Queue[Event | None] = queue.Queue()
        self._writer = threading.Thread(target=self._write, name="link", daemon=True)
        self._writer.start()

    @staticmethod
    def pair() -> tuple[Link, socket.socket]:
        """A link, and the socket of its other end to hand to a child process."""
        ours, theirs = socket.socketpair()
        return Link(ours), theirs

    def send(self, event: Event) -> None:
        """Queue an event for the other end; lost silently once that is gone."""
        self._outbox.put(event)

    def _write(self) -> None:
        while (event := self._outbox.get()) is not None:
            try:
                self._channel.sendall(event.dumps().encode() + b"\n")
            except OSError:
                return

    def received(self) -> Iterator[Event]:
        """The other end's events, until it closes."""
        with contextlib.suppress(OSError), self._channel.makefile("rb") as lines:
            for line in lines:
                yield Event.loads(line.decode())

    def listen(self, handle: Callable[[Event], None], closed: Callable[[], None]) -> None:
        """Handle the other end's events in a thread; `closed` is called once, at the end."""

        def run() -> None:
            for event in self.received():
                handle(event)
            closed()

        threading.Thread(target=run, name="listen", daemon=True).start()

    def close(self) -> None:
        """Send what is queued, then close."""
        self._outbox.put(None)
        self._writer.join(timeout=5)
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        self._channel.close()


def spawn(module: str, request: Request, out: IO[bytes] | int | None = None) -> tuple[Link, subprocess.Popen[bytes]]:
    """Start `python -m module` with `request` and one end of a link; what it prints goes to `out`.

    It runs the same code as this process and in a session of its own: Ctrl-C is for us to handle.
    """
    link, theirs = Link.pair()
    here = os.fspath(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno()), json.dumps(asdict(request))],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT if out else None,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
    return link, process


def spawned(arguments: list[str]) -> tuple[Link, Request]:
    """The link and the request that `spawn` gave to this process."""
    number, text = arguments
    request = json.loads(text)
    request["targets"] = tuple(request["targets"])
    return Link(socket.socket(fileno=int(number))), Request(**request)
