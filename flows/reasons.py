"""Why DVC would run a stage, in one line a person understands.

In: a stage as DVC loaded it, with the lock file's hashes. Out: a sentence, or None where nothing changed.
The decision is the one of `dvc.stage.Stage.changed`; here it only learns to speak.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

UNCHANGED = "nothing it depends on changed"


def reason(stage: Any, producers: Mapping[str, str]) -> str | None:
    """The first thing that makes `stage` (a `dvc.stage.Stage`) run, and how many more there are.

    Args:
        stage: as loaded from dvc.yaml and dvc.lock.
        producers: which stage makes a path, so that a change names its origin.
    """
    reasons = list(_reasons(stage, producers))
    if not reasons:
        return None
    return reasons[0] if len(reasons) == 1 else f"{reasons[0]} (and {len(reasons) - 1} more)"


def _reasons(stage: Any, producers: Mapping[str, str]) -> Iterator[str]:
    if stage.cmd and not _recorded(stage):
        yield "it has not run yet"
        return
    if stage.changed_stage():
        yield "its command changed"
    if not stage.frozen:
        yield from _dependency_reasons(stage, producers)
    for out in stage.outs:
        for path, status in out.status().items():
            yield f"output {path} {_WORDS.get(status, status)}"


def _dependency_reasons(stage: Any, producers: Mapping[str, str]) -> Iterator[str]:
    if stage.is_callback:
        yield "it has neither dependencies nor outputs, so it always runs"
        return
    if stage.always_changed:
        yield "always_changed is set"
    for dep in stage.deps:
        for path, status in dep.status().items():
            if isinstance(status, Mapping):
                yield from (_parameter(dep, path, name) for name in status)
            else:
                origin = f" by {producers[dep.fs_path]}" if dep.fs_path in producers else ""
                yield f"{path} {_WORDS.get(status, status)}{origin}"


_WORDS = {
    "modified": "changed",
    "deleted": "missing",
    "new": "is new",
    "not in cache": "missing from the cache",
}


def _recorded(stage: Any) -> bool:
    """Whether dvc.lock holds an entry of the stage: each entry it would hold has a hash there."""
    entries = [*stage.deps, *stage.outs]
    return not entries or any(entry.hash_info for entry in entries) or bool(stage.cmd_changed)


def _parameter(dep: Any, path: str, name: str) -> str:
    recorded = dep.hash_info.value or {}
    current = dep.read_params()
    file = "" if path.endswith("params.yaml") and "/" not in path else f" ({path})"
    if name not in current:
        return f"{name} was removed{file}"
    if name not in recorded:
        return f"{name} is new: {_value(current[name])}{file}"
    return f"{name} changed: {_value(recorded[name])} → {_value(current[name])}{file}"


def _value(value: Any) -> str:
    """A value short enough for one line; floats as people write learning rates (1e-5, not 1e-05)."""
    text = repr(value).replace("e-0", "e-") if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
