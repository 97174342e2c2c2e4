"""`python -m package.module` as a function call in this process, as faithful as a process of its own.

TensorFlow and the like stay loaded; the repository's own modules, arguments, folder, environment, seeds
and loggers are the stage's alone and are gone, or as before, when it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import logging
import os
import random
import runpy
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.commands import Module, shown
from flows.faults import StageFailedError, of_system

Line = Callable[[str], None]
# Told a progress record: description, done, total, unit, rate, seconds_left, note.
Advance = Callable[[Any], None]


def run_module(
    module: Module,
    folder: str,
    root: Path,
    environment: dict[str, str],
    *,
    on_line: Line,
    on_progress: Advance,
) -> None:
    """Run `module` as `python -m` would in `folder`; call it from the main thread only.

    Raises:
        StageFailedError: it raised, or exited with a code other than 0; the traceback has gone to `on_line`.
    """
    with (
        _surroundings(module, folder, environment),
        _own_modules(root, folder),
        _captured(on_line),
        _progress(on_progress),
    ):
        _fresh_state()
        try:
            with _threads_joined():
                runpy.run_module(module.name, run_name="__main__", alter_sys=True)
        except SystemExit as exit_:
            _check_exit(exit_.code)
        except Exception as error:
            raise _failure(error, on_line) from error
    _release_memory()


def _check_exit(code: object) -> None:
    if code in (None, 0):
        return
    if isinstance(code, int):
        raise StageFailedError(f"it ended with code {code}", 2 if code == 2 else 1)
    raise StageFailedError(str(code))


def _failure(error: Exception, on_line: Line) -> StageFailedError:
    """The sentence of an error that is understood (it carries an exit code), else its traceback's end."""
    exit_code = getattr(error, "exit_code", None)
    if isinstance(exit_code, int):
        return StageFailedError(str(error), exit_code)
    if text := of_system(error):
        return StageFailedError(text)
    frames = traceback.extract_tb(error.__traceback__)
    own = next((i for i, frame in enumerate(frames) if frame.filename == "<frozen runpy>"), 0)
    while own < len(frames) and frames[own].filename == "<frozen runpy>":
        own += 1
    on_line("Traceback (most recent call last):")
    for text in [*traceback.format_list(frames[own:]), *traceback.format_exception_only(error)]:
        for line in text.rstrip().splitlines():
            on_line(line)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return StageFailedError(f"{type(error).__name__}: {error}{where}")


@contextmanager
def _surroundings(module: Module, folder: str, environment: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ), os.getcwd(), sys.argv, list(sys.path)  # noqa: PTH109
    root = logging.getLogger()
    loggers = list(root.handlers), root.level
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    mask = os.umask(0)
    os.umask(mask)
    _become(environment)
    os.chdir(folder)
    sys.argv = [module.name, *module.arguments]
    sys.path.insert(0, folder)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        root.handlers[:], root.level = loggers
        _handle(handlers)
        os.umask(mask)
        _become(before[0])
        os.chdir(before[1])
        sys.argv, sys.path[:] = before[2], before[3]


def _become(environment: dict[str, str]) -> None:
    """Make it this process's environment; what stays the same is there all the while, since other threads look."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def _handle(handlers: Mapping[signal.Signals, Any]) -> None:
    """Give the signals their handlers back: Ctrl-C is the run's to handle once the stage has ended."""
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@contextmanager
def _own_modules(root: Path, folder: str) -> Iterator[None]:
    """Give the stage fresh modules of the repository, and take them away after.

    A long-lived process thus never runs code older than the files, and no stage meets the globals of another.
    """
    stashed = _take_modules(root, folder)
    try:
        yield
    finally:
        _take_modules(root, folder)
        sys.modules.update(stashed)
        importlib.invalidate_caches()  # the stage may have written a module


def _take_modules(root: Path, folder: str) -> dict[str, Any]:
    taken = {name: module for name, module in list(sys.modules.items()) if _belongs(name, module, root, folder)}
    for name in taken:
        del sys.modules[name]
    return taken


def _belongs(name: str, module: Any, root: Path, folder: str) -> bool:
    """Whether a module lies in the repository, or has the name of a package there (our own rooms may)."""
    if name == "__main__":
        return False
    contents = vars(module) if hasattr(module, "__dict__") else {}  # getattr would load a lazy module
    file = contents.get("__file__") or next(iter(contents.get("__path__") or []), None)
    if file is not None and "site-packages" not in file and not Path(file).is_relative_to(sys.prefix):
        if Path(file).is_relative_to(root):
            return True
        top = name.partition(".")[0]
        return Path(folder, top, "__init__.py").is_file() or Path(folder, f"{top}.py").is_file()
    return False


@contextmanager
def _captured(on_line: Line) -> Iterator[None]:
    """Send all that is written to stdout and stderr, by Python, C++ or a child, to `on_line`."""
    reading, writing = os.pipe()
    saved = {number: os.dup(number) for number in (1, 2)}
    streams = sys.stdout, sys.stderr
    for stream in streams:
        stream.flush()
    reader = threading.Thread(target=_forward, args=(reading, on_line), daemon=True)
    reader.start()
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    os.close(writing)
    sys.stdout, sys.stderr = _stream(1), _stream(2)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError, OSError):
                stream.flush()
        sys.stdout, sys.stderr = streams
        for number, copy in saved.items():
            os.dup2(copy, number)
            os.close(copy)
        # A child that outlives the stage may hold the pipe open: do not wait for it for ever.
        reader.join(timeout=1)


def _stream(number: int) -> io.TextIOWrapper:
    return open(number, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)


def _forward(descriptor: int, on_line: Line) -> None:
    with open(descriptor, "rb") as pipe:
        for raw in pipe:
            if text := shown(raw):
                on_line(text)


class _ProgressHandler(logging.Handler):
    def __init__(self, on_progress: Advance) -> None:
        super().__init__()
        self._on_progress = on_progress

    def emit(self, record: logging.LogRecord) -> None:
        state = getattr(record, "progress", None)
        if state is not None:
            self._on_progress(state)


@contextmanager
def _progress(on_progress: Advance) -> Iterator[None]:
    """Listen to the progress records of the stage's loops instead of printing them."""
    logger = logging.getLogger("graft.progress")
    before = logger.level, logger.propagate
    handler = _ProgressHandler(on_progress)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
        logging.getLogger("graft").manager._clear_cache()  # type: ignore[attr-defined]


@contextmanager
def _threads_joined() -> Iterator[None]:
    """Wait for the threads the stage leaves running, as Python does at a process's end."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if not thread.daemon:
            thread.join()


def _fresh_state() -> None:
    """Undo what an earlier stage set in libraries that stay loaded. Loads none of them itself."""
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if keras := sys.modules.get("keras"):
        keras.utils.clear_session(free_memory=False)
        keras.config.set_floatx("float32")
        keras.config.set_epsilon(1e-7)
        keras.config.set_image_data_format("channels_last")
    if tensorflow := sys.modules.get("tensorflow"):
        tensorflow.random.set_seed(None)
        config = sys.modules.get("tensorflow.python.framework.config")
        if config is not None and hasattr(config, "disable_op_determinism"):
            config.disable_op_determinism()


def _release_memory() -> None:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
