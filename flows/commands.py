"""Running a stage's command: as a function in this process, or as a process that can be killed.

In: one command of dvc.yaml, its folder and environment. Out: nothing, or an error of one sentence.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from flows import orphans, seam
from flows.faults import StageFailedError, StageTimedOutError, Stopped
from graft.errors import GraftError

# How often a process that runs is looked at for a stop or a deadline; its end is noticed at once or sooner.
LOOK_SECONDS = 0.05
# Seconds a process has to end by itself before it is killed.
GRACE_SECONDS = 3.0

_SHELL = re.compile(r"[|&;<>()$`*?\[\]{}~!#\\\n]")


@dataclass(frozen=True)
class Module:
    """`python -m name arguments` where the repository itself holds the module."""

    name: str
    arguments: tuple[str, ...]


def as_module(command: str, folder: str) -> Module | None:
    """The module that `command` runs, or None where only a process of its own is faithful.

    A command qualifies when it is plain `python -m package.module …` without any shell in it, and
    `folder` holds the module: what others wrote (`python -m pip`) keeps a process of its own.
    """
    if _SHELL.search(command):
        return None
    try:
        python, flag, name, *arguments = shlex.split(command)
    except ValueError:
        return None
    if python not in ("python", "python3") or flag != "-m" or not re.fullmatch(r"\w+(\.\w+)*", name):
        return None
    path = Path(folder, *name.split("."))
    if path.with_suffix(".py").is_file() or (path / "__main__.py").is_file():
        return Module(name, tuple(arguments))
    return None


class ProcessEndedError(GraftError):
    """A process ended with a code other than 0; its last line usually says why."""

    def __init__(self, code: int, last: str) -> None:
        self.code = code
        how = f"ended with code {code}"
        if code < 0:
            with suppress(ValueError):
                how = f"was killed by {signal.Signals(-code).name}"
        super().__init__(f"{how}: {last}" if last else how)


def run_command(
    command: str,
    folder: str,
    environment: dict[str, str],
    *,
    on_line: Callable[[str], None],
    deadline: float | None,
    stop: threading.Event,
) -> None:
    """Run one command of dvc.yaml in the user's shell; the rest as `run_process`.

    Raises:
        StageFailedError: it ended with a code other than 0; the sentence names command, code and last line.
    """
    try:
        run_process(seam.shell(command), folder, environment, on_line=on_line, deadline=deadline, stop=stop)
    except ProcessEndedError as error:
        # 2 (the input is wrong) counts only from our own kind of stage: a shell's 2 may mean anything.
        exit_code = 2 if error.code == 2 and as_module(command, folder) else 1
        short = command if len(command) <= 60 else f"{command[:57]}…"
        raise StageFailedError(f"`{short}` {error}", exit_code) from None


def run_process(
    argv: str | list[str],
    folder: str,
    environment: dict[str, str],
    *,
    on_line: Callable[[str], None],
    deadline: float | None,
    stop: threading.Event,
) -> None:
    """Run `argv` in a process group of its own; its output goes to `on_line`, line by line.

    Args:
        argv: a program and its arguments, or a command line for the shell.
        folder: where it runs.
        environment: its whole environment.
        on_line: told each line of stdout and stderr.
        deadline: on `time.monotonic`'s clock; when it passes, the whole group is killed.
        stop: when set, the group is ended too.

    Raises:
        ProcessEndedError: it ended with a code other than 0.
        StageTimedOutError: the deadline passed.
        Stopped: `stop` was set.
    """
    process = subprocess.Popen(
        argv,
        cwd=folder,
        env=environment,
        shell=isinstance(argv, str),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    lines = _Lines(on_line)
    reader = threading.Thread(target=lines.read, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        _wait(process, deadline, stop)
    finally:
        _end_group(process)
        reader.join(timeout=GRACE_SECONDS)
    if process.returncode != 0:
        raise ProcessEndedError(process.returncode, lines.last)


class _Lines:
    """Reads a pipe line by line and remembers the last one: it usually says what went wrong."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self.last = ""

    def read(self, pipe: IO[bytes]) -> None:
        with pipe:
            for raw in pipe:
                if text := shown(raw):
                    self.last = text
                    self._on_line(text)


def shown(raw: bytes) -> str:
    """What a terminal would show of a line in the end: after its last carriage return."""
    return raw.decode("utf-8", errors="replace").rstrip().rpartition("\r")[2]


def _wait(process: subprocess.Popen[bytes], deadline: float | None, stop: threading.Event) -> None:
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_SECONDS)
            return
        if stop.is_set():
            raise Stopped("stopped")
        if deadline is not None and time.monotonic() > deadline:
            raise StageTimedOutError("it took longer than its timeout and was stopped")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and whatever it left in its group."""
    for signum, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signum)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue


def environment_of_stages(mark: str) -> dict[str, str]:
    """What every stage finds in its environment besides the user's own.

    `python` is the one that runs us, output comes line by line, and the process can be found again.
    """
    folder = os.fspath(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    if path.split(os.pathsep)[0] != folder:
        path = os.pathsep.join([folder, path])
    return {"PATH": path, "PYTHONUNBUFFERED": "1", orphans.MARK: mark}
