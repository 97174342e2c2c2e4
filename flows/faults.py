"""What can go wrong around a stage, each as one sentence with the mend instead of a traceback."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graft.errors import GraftError, InputError


class StageFailedError(GraftError):
    """A stage's own command failed."""

    def __init__(self, sentence: str, exit_code: int = 1) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class StageTimedOutError(GraftError):
    """A stage was stopped because it took longer than its `meta:` allows."""


class Stopped(BaseException):
    """The run is asked to end now: Ctrl-C, SIGTERM, or the flow was cancelled."""

    def __init__(self, why: str, exit_code: int = 130) -> None:
        super().__init__(why)
        self.exit_code = exit_code


@contextmanager
def translated() -> Iterator[None]:
    """Turn the errors of DVC and of the operating system into sentences."""
    from dvc.exceptions import DvcException

    try:
        yield
    except GraftError:
        raise
    except (DvcException, OSError) as error:
        raise sentence(error) from error


def sentence(error: Exception) -> GraftError:
    """The one sentence for an error of DVC or the operating system."""
    chain = list(_chain(error))
    for cause in chain:
        if isinstance(cause, GraftError):
            return cause
    for cause in chain:
        if text := of_system(cause):
            return GraftError(text)
        if isinstance(cause, FileNotFoundError) and cause.filename:
            return InputError(f"{cause.filename} does not exist; make it, or mend the dvc.yaml that names it")
    if conflict := _conflict(chain):
        return conflict
    named = type(error).__name__
    text = _invalid(error) or _one_line(str(error)) or named
    if named == "LockError":
        return GraftError(f"another DVC command is at work here ({text}); try again when it is done")
    if named in _INPUT:
        return InputError(text)
    return GraftError(text)


def of_system(error: BaseException) -> str | None:
    """The sentence for an error of the operating system that the machine's owner can mend."""
    if not isinstance(error, OSError) or error.errno not in _SYSTEM:
        return None
    return _SYSTEM[error.errno].format(where=f" at {error.filename}" if error.filename else "")


_SYSTEM = {
    errno.ENOSPC: "no space is left on the device{where}; free some and run again: finished stages are kept",
    errno.EDQUOT: "the disk quota is used up{where}; free some and run again: finished stages are kept",
    errno.EROFS: "the file system is read-only{where}; make it writable, or use `dvc cache dir`",
    errno.EACCES: "permission denied{where}; give this user the right to write there",
    errno.EPERM: "the operation is not permitted{where}; give this user the right to write there",
}

# DVC's exceptions that a person caused by what they wrote, by name: most are never imported otherwise.
_INPUT = {
    "ArgumentDuplicationError",
    "BadParamFileError",
    "CircularDependencyError",
    "CyclicGraphError",
    "DependencyDoesNotExistError",
    "FileIsGitIgnored",
    "MissingParamsError",
    "MissingParamsFile",
    "NotDvcRepoError",
    "OutputDuplicationError",
    "OverlappingOutputPathsError",
    "ParamsIsADirectoryError",
    "ResolveError",
    "StageFileBadNameError",
    "StagePathAsOutputError",
    "YAMLFileCorruptedError",
    "YAMLSyntaxError",
    "YAMLValidationError",
}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _conflict(chain: list[BaseException]) -> InputError | None:
    """A YAML file that git left with merge-conflict marks."""
    for cause in chain:
        path = getattr(cause, "path", None)
        if not isinstance(path, str) or not Path(path).is_file():
            continue
        if re.search(r"^(<{7}|={7}|>{7})", Path(path).read_text(encoding="utf-8", errors="replace"), re.MULTILINE):
            return InputError(
                f"{path} holds git's merge-conflict marks; keep one side "
                f"(`git checkout --ours {path}` or `--theirs`) and run again: what is cached is restored"
            )
    return None


def _invalid(error: Exception) -> str | None:
    """Where a DVC file does not fit its format: DVC's own message only counts the errors."""
    faults = getattr(getattr(error, "exc", None), "errors", None)
    if not faults:
        return None
    where = " → ".join(str(part) for part in faults[0].path)
    return f"{getattr(error, 'path', 'dvc.yaml')}: {faults[0].error_message} at {where}"


def _one_line(text: str) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    return "; ".join(lines[:3])
