"""Whether there is anything to do tonight: new data, an unfinished promotion, a model nobody has judged, drift.

In: the repository. Out: a `Look`, made in seconds without Prefect.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows import judging
from flows.faults import translated
from flows.project import Project, open_repository
from flows.registry import Store, line
from graft import history
from graft.drift import Drift
from graft.errors import GraftError, InputError
from graft.params import Params
from graft.registry import PROD, Registry, Version


@dataclass(frozen=True)
class Look:
    """What is to be done. `stages` maps each stage that would run to its reason."""

    stages: dict[str, str]
    resume: Version | None = None  # registered, and killed before it was promoted
    judge: bool = False  # the workspace's model is neither live nor judged
    drift: Drift | None = None

    @property
    def something(self) -> bool:
        """Whether the night has work to do."""
        return bool(self.stages or self.resume or self.judge)

    @property
    def why(self) -> str:
        """One sentence."""
        if self.stages:
            name, reason = next(iter(self.stages.items()))
            return f"{name}: {reason}"
        if self.resume:
            return f"{self.resume.name} is registered and was not promoted yet"
        if self.judge:
            return "the model in this folder has not been judged yet"
        if self.drift and self.drift.alarms:
            alarms = "; ".join(self.drift.alarms)
            return f"nothing changed, but what is served drifted ({alarms}); new labelled pictures are wanted"
        return "nothing changed since the last decision"


def look(store: Store, settings: Params, force: bool = False) -> Look:
    """Look at the sources, the registry and the served traffic; imports are updated first.

    Raises:
        GraftError: an import's source cannot be reached, or dvc.yaml is wrong.
    """
    with inside(store.root):
        update_imports(store.root)
        stages = {stage.name: stage.reason for stage in Project(store.root).plan() if stage.reason}
    drift = judging.seen_drift(store, settings)
    if stages:
        return Look(stages, drift=drift)
    try:
        model = store.fingerprint()
    except (InputError, FileNotFoundError):
        return Look({"pipeline": "it has not run yet"}, drift=drift)
    now = store.read()
    known = now.with_model(model)
    current = now.current()
    if known and not _was_promoted(now, known):
        return Look({}, resume=known, drift=drift)
    judged = known is not None or (not force and _judged(store, settings, model, current.version if current else None))
    return Look({}, judge=not judged, drift=drift)


def _was_promoted(now: Registry, version: Version) -> bool:
    return any(move.version == version.name and move.stage == PROD for move in now.assignments)


def _judged(store: Store, settings: Params, model: str, live: str | None) -> bool:
    """Whether this model was live once, or the gate said no to it against the same champion by the same bounds."""
    bounds = settings.gate.model_dump()
    return any(
        record.get("outcome") == "promote" or (record.get("champion") == live and record.get("gate") == bounds)
        for record in history.read(store.root)
        if record.get("challenger") == model
    )


def update_imports(root: Path) -> None:
    """`dvc update` for everything that was brought in by `dvc import` or `dvc import-url`.

    Raises:
        GraftError: a source cannot be reached.
    """
    with translated(), open_repository(root) as repo:
        targets = sorted({stage.relpath for stage in repo.index.stages if stage.is_import})
        if not targets:
            return
        try:
            repo.update(targets)
        except Exception as error:  # sources raise what their libraries raise
            raise GraftError(
                f"the source of {', '.join(targets)} cannot be looked at ({line(error)}); the live model stays: "
                "try again when it is up"
            ) from error


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Within, `folder` is the current one: DVC names stages relative to it."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
