"""Logs as JSON lines: one for each request with its id, and what the server itself has to say.

Lines are gathered and written together a few times a second: a system call for each would cost requests.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
from collections import deque
from typing import TextIO

from serving.protocol import dump_json

FLUSH_SECONDS = 0.25
# A reader of the log that hangs must not fill the memory.
_KEPT_LINES = 100_000


class AccessLog:
    """Gathers lines; `flush` writes them. Both belong to the event loop."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._lines: deque[bytes] = deque(maxlen=_KEPT_LINES)

    def add(self, **fields: object) -> None:
        """One request, answered now."""
        if self._stream is not None:
            self._lines.append(dump_json({"time": _now(), "event": "request", **fields}))

    def flush(self) -> None:
        """Write what was gathered."""
        if self._stream is None or not self._lines:
            return
        text = b"\n".join(self._lines).decode()
        self._lines.clear()
        try:
            self._stream.write(f"{text}\n")
            self._stream.flush()
        except (OSError, ValueError):
            # Whoever read the log is gone; requests matter more.
            self._stream = None


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with the traceback where there is one."""
        fields = {
            "time": _now(),
            "event": "log",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def log_as_json() -> None:
    """Send the server's own records to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name, level in (("serving", logging.INFO), ("graft", logging.INFO), ("uvicorn", logging.WARNING)):
        log = logging.getLogger(name)
        log.handlers[:] = [handler]
        log.setLevel(level)
        log.propagate = False


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
