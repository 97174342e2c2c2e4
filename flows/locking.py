"""One run at a time on a repository: whoever comes second waits, knows for whom, or is told to go.

The lock is the kernel's (`flock`), so that a killed run leaves none behind; the file beside it only says
who holds it.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from graft.errors import GraftError


@contextmanager
def run_lock(state: Path, *, wait: bool, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the repository's run lock.

    Args:
        state: folder for the engine's own files, made where it is missing.
        wait: wait for the present holder, or fail at once.
        waiting: told once, in a sentence, whom we wait for.

    Raises:
        GraftError: another run holds the lock and `wait` is False.
    """
    state.mkdir(parents=True, exist_ok=True)
    with (state / "run.lock").open("a+", encoding="utf-8") as file:
        if not _try(file):
            if not wait:
                raise GraftError(f"{_holder(file)}; try again when it is done, or leave out --no-wait")
            waiting(f"{_holder(file)}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        _sign(file)
        yield
        file.truncate(0)


def _try(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(file: IO[str]) -> None:
    file.truncate(0)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    json.dump({"pid": os.getpid(), "user": user, "since": time.time()}, file)
    file.flush()


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        holder = json.loads(file.read())
        since = time.strftime("%H:%M:%S", time.localtime(holder["since"]))
        who = f"process {holder['pid']} of {holder['user']}, since {since}"
        return f"another run holds this repository: {who}"
    except (ValueError, KeyError):  # taken a moment ago, not signed yet
        return "another run holds this repository"
