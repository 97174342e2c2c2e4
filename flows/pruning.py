"""Forgetting old versions and collecting the data that nothing names any more.

In: the registry. Out: what went. Kept are the workspace, every branch's tip, every tag that is left: so all kept
versions, whatever their age, and everything a stage is at or can be rolled back to.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flows.faults import translated
from flows.locking import run_lock
from flows.look import inside
from flows.project import open_repository, state_folder
from flows.registry import Store
from graft.registry import Registry, Version


@dataclass(frozen=True)
class Pruned:
    """The versions that went or would go, and the bytes freed in the cache."""

    versions: tuple[Version, ...]
    bytes: int = 0


def removable(now: Registry, keep: int) -> tuple[Version, ...]:
    """All but the newest `keep` versions, those that a stage is at, and those a rollback would go to."""
    stages = {move.stage for move in now.assignments}
    needed = {version.name for version in now.versions[-max(keep, 1) :]}  # the newest: its name is never given again
    for stage in stages:
        current = now.current(stage)
        needed |= {name for name in (current.version if current else None, now.previous(stage)) if name}
    return tuple(version for version in now.versions if version.name not in needed)


def prune(store: Store, keep: int, *, dry: bool, cloud: bool) -> Pruned:
    """Remove what `removable` names, then what no tag, branch or workspace needs.

    Raises:
        GraftError: git or the DVC remote refuses.
    """
    versions = removable(store.read(), keep)
    if dry:
        return Pruned(versions)
    store.forget(versions)
    before = _size(store)
    _collect(store, cloud=cloud)
    return Pruned(versions, before - _size(store))


def _collect(store: Store, *, cloud: bool) -> None:
    with (
        run_lock(state_folder(store.root), wait=True, waiting=print),  # what a run has made is in no lock file yet
        translated(),
        inside(store.root),
        open_repository(store.root) as repo,
    ):
        repo.gc(workspace=True, all_tags=True, all_branches=True, cloud=cloud, force=True)


def _size(store: Store) -> int:
    with translated(), open_repository(store.root) as repo:
        cache = repo.cache.local.path
    return sum(file.stat().st_size for file in Path(cache).rglob("*") if file.is_file())
