"""The one place that reaches into DVC's private parts: what is replaced, and whether it still fits.

`dvc.stage.run.cmd_run` is DVC's own "run this stage's command". Replaced, the command runs where the
engine wants it, and everything else (removing outputs, run-cache, locks, dvc.lock) stays DVC's.
Smaller replacements keep threads apart and write dvc.lock safely and fast. Where an upgrade of DVC
no longer fits, `misfit` says so and the engine lets DVC run its commands itself.
"""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from flows.lockfile import LockFiles

# A command of a stage, the folder it runs in and its environment.
Command = Callable[[Any, list[str], str, dict[str, str]], None]

_SIGNATURES = {
    ("dvc.stage.run", "cmd_run"): ["stage", "dry", "run_env"],
    ("dvc.stage.run", "prepare_kwargs"): ["stage", "run_env"],
    ("dvc.stage.run", "_enforce_cmd_list"): ["cmd"],
    ("dvc.stage.run", "_make_cmd"): ["executable", "cmd"],
    ("dvc.stage.run", "get_executable"): [],
    ("dvc.repo", "lock_repo"): ["repo"],
    ("dvc.rwlock", "rwlock"): ["tmp_dir", "fs", "cmd", "read", "write", "hardlink"],
    ("dvc.utils.serialize._yaml", "_modify_data"): ["path", "parser", "dumper", "fs"],
}
_CALLS = {
    ("dvc.stage.run", "prepare_kwargs"): {"fix_env"},
    ("dvc.stage.run", "run_stage"): {"cmd_run", "unlocked_repo"},
    ("dvc.utils.serialize._yaml", "modify_yaml"): {"_modify_data", "parse_yaml_for_update", "_dump"},
}


def misfit() -> str | None:
    """What in the installed DVC no longer fits the seam, or None where all holds."""
    import importlib

    import dvc

    for (module, name), wanted in _SIGNATURES.items():
        function = getattr(importlib.import_module(module), name, None)
        found = list(inspect.signature(function).parameters) if function else None
        if found != wanted:
            return f"DVC {dvc.__version__}: {module}.{name} takes {found}, wanted {wanted}"
    for (module, name), called in _CALLS.items():
        function = inspect.unwrap(getattr(importlib.import_module(module), name, lambda: None))
        if missing := called - set(function.__code__.co_names):
            return f"DVC {dvc.__version__}: {module}.{name} no longer calls {', '.join(sorted(missing))}"
    return None


@contextmanager
def replaced(command: Command, gate: threading.Lock) -> Iterator[None]:
    """Within, DVC runs stage commands through `command` and writes dvc.lock by `LockFiles`.

    Args:
        command: runs one stage's commands; an exception fails the stage.
        gate: held by whoever uses DVC; released while a command runs, so that other threads may.
    """
    with (
        mock.patch("dvc.stage.run.cmd_run", _cmd_run(command, gate)),
        mock.patch("dvc.stage.run.fix_env", _fix_env()),
        mock.patch("dvc.rwlock.rwlock", _rwlock()),
        mock.patch("dvc.utils.serialize._yaml._modify_data", LockFiles().modify),
    ):
        yield


def _cmd_run(command: Command, gate: threading.Lock) -> Callable[..., None]:
    from dvc.stage.run import _enforce_cmd_list, prepare_kwargs

    def cmd_run(stage: Any, dry: bool = False, run_env: dict[str, str] | None = None) -> None:
        if dry:
            return
        where = prepare_kwargs(stage, run_env=run_env)
        repo = stage.repo
        # DVC has released its repository lock here; a thread that comes in meanwhile must take it anew.
        depth, repo._lock_depth = repo._lock_depth, 0
        gate.release()
        try:
            command(stage, _enforce_cmd_list(stage.cmd), where["cwd"], where["env"])
        finally:
            gate.acquire()
            repo._lock_depth = depth

    return cmd_run


def _fix_env() -> Callable[..., dict[str, str]]:
    """The environment DVC gives its commands: ours as it is now, and not what a stage in this process makes of it."""
    from dvc.utils import fix_env

    ours = dict(os.environ)

    def as_before(env: dict[str, str] | None = None) -> dict[str, str]:
        fixed: dict[str, str] = fix_env(ours if env is None else env)
        return fixed

    return as_before


def shell(command: str) -> str | list[str]:
    """How DVC hands `command` to the user's shell."""
    from dvc.stage.run import _make_cmd, get_executable

    argv: str | list[str] = _make_cmd(get_executable(), command)
    return argv


def _rwlock() -> Callable[..., Any]:
    """DVC's path lock, its holder named by thread.

    DVC names the holder by `sys.argv`, which a stage in this process changes while it runs: without a
    stable name it would block itself, and two threads would count as one.
    """
    from dvc.rwlock import rwlock

    def by_thread(tmp_dir: str, fs: Any, cmd: str, read: list[str], write: list[str], hardlink: bool) -> Any:
        return rwlock(tmp_dir, fs, f"graft run: {threading.current_thread().name}", read, write, hardlink)

    return by_thread
