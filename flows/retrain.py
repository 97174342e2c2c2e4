"""The nightly flow: look, run the pipeline, judge, register, promote, tell.

In: a repository. Out: a state whose name says what happened: Promoted, Kept, Unchanged, Drifted, Superseded (green),
Refused or Failed (red). Killed at any step and run again, it goes on from what the tags and dvc.lock say.
"""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows import judging, promotion, telling
from flows.look import Look, inside, look
from flows.pipeline import pipeline
from flows.project import find_root
from flows.registry import Store
from graft import gate, history, intake, params
from graft.errors import GraftError
from graft.evaluation.study import Study
from graft.gate import Decision
from graft.registry import Version

NAMES = {"promote": "Promoted", "keep": "Kept", "refuse": "Refused"}


@dataclass(frozen=True)
class Night:
    """What became of one retraining."""

    name: str
    why: str
    decision: Decision | None = None
    version: str | None = None

    def state(self) -> State[Any]:
        """As Prefect shows it."""
        if self.name == "Refused":
            return Failed(name=self.name, message=self.why, data=GraftError(self.why))
        return Completed(
            name=self.name, message=self.why, data={"outcome": self.name, "why": self.why, "version": self.version}
        )


def step(function: Callable[..., Any]) -> Any:
    """A task that keeps no results: git, DVC and the folder hold them."""
    return task(cache_policy=NO_CACHE, persist_result=False, task_run_name=function.__name__.strip("_"))(function)


def _flow_run_name() -> str:
    return f"retrain {Path(str(flow_run.parameters.get('repo', '.'))).resolve().name}"


@flow(name="retrain", flow_run_name=_flow_run_name, persist_result=False)
def retrain(repo: str = ".", accept_data: bool = False, force: bool = False) -> dict[str, Any]:
    """Bring the live model of the repository at `repo` up to date with its data, if that makes it better.

    Args:
        repo: a folder inside a Graft project.
        accept_data: train on a delivery that looks wrong: somebody has looked at it.
        force: judge the model again though it was judged before.

    Returns:
        `{"outcome", "why", "version"}`.

    Raises:
        GraftError: a step failed; the live model is as it was.
    """
    if begun := telling.superseded():
        return Completed(name=telling.SUPERSEDED, message=f"the run begun {begun} did this one's work")  # type: ignore[return-value]
    root = find_root(Path(repo))
    settings = params.load(root / params.FILE)
    store = Store(root, settings.retrain.git_remote, settings.retrain.branch)
    with store.locked(get_run_logger().info, "retrain"):
        try:
            night = _night(store, settings, accept_data, force)
        except GraftError as error:
            telling.tell(store, settings, Night("Failed", str(error)))
            raise
        telling.tell(store, settings, night)
    return night.state()  # type: ignore[return-value]  # Prefect takes a state for a result


def _night(store: Store, settings: params.Params, accept_data: bool, force: bool) -> Night:
    with store.locked():
        store.fetch()
        promotion.settle(store, ())
    found: Look = _look(store, settings, force)
    get_run_logger().info("%s", found.why)
    if not found.something:
        return Night("Drifted" if found.drift and found.drift.alarms else "Unchanged", found.why)
    if found.resume:
        return _promoted(store, settings, found.resume, None)
    with tempfile.TemporaryDirectory(prefix="graft-champion-") as folder:
        live = judging.champion(store, Path(folder), settings)
        if refusal := _trained(store, settings, live, found, accept_data):
            return _settled(store, settings, live, refusal)
        decision, record = _judge(store, live, settings)
    if decision.outcome != "promote":
        return _settled(store, settings, live, decision)
    if settings.retrain.require_approval and not telling.approved(decision, settings.retrain.approval_hours):
        return _settled(store, settings, live, replace(decision, outcome="keep", why="nobody approved it"))
    if _live(store) != (live.version.name if live else None):
        why = "the live model changed while this one was judged"
        return _settled(store, settings, live, replace(decision, outcome="keep", why=why))
    version: Version = _register(store, decision, record)
    return _promoted(store, settings, version, decision, live)


def _trained(
    store: Store, settings: params.Params, live: judging.Champion | None, found: Look, accept_data: bool
) -> Decision | None:
    """Prepare, look at the delivery, run the rest; the refusal where the data cannot be trained on."""
    study = Study(store.root)
    if found.stages:
        before = _known_pictures(study)
        try:
            _run(store.root, (store.producer(judging.PREPARED),))
        except GraftError as error:
            return gate.refused("delivery", f"the delivery cannot be prepared: {error}")
        get_run_logger().info("%s", intake.changes(before, intake.pictures(Study(store.root))))
    if live is not None and not accept_data and (said := _intake(Study(store.root), live, settings)):
        return gate.refused(
            "delivery", f"the delivery is not trained on: {'; '.join(said)}; if it is right, --accept-data"
        )
    if found.stages:
        _run(store.root, ())
    return None


def _known_pictures(study: Study) -> intake.Pictures:
    try:
        return intake.pictures(study)
    except GraftError:
        return {}  # nothing prepared yet


def _run(root: Path, targets: tuple[str, ...]) -> None:
    """The pipeline as a flow run below this one."""
    state = pipeline(repo=str(root), targets=targets, return_state=True)
    if not state.is_completed():
        raise GraftError(state.message or f"the pipeline ended as {state.name}")


@step
def _look(store: Store, settings: params.Params, force: bool) -> Look:
    return look(store, settings, force)


@step
def _intake(study: Study, live: judging.Champion, settings: params.Params) -> list[str]:
    return judging.objections(study, live, settings)


@step
def _judge(store: Store, live: judging.Champion | None, settings: params.Params) -> tuple[Decision, dict[str, Any]]:
    decision, record = judging.judge(Study(store.root), store, live, settings)
    for check in decision.checks:
        get_run_logger().info("%s: %s", "passed" if check.passed else "failed", check.says)
    return decision, record


def _live(store: Store) -> str | None:
    current = store.read().current()
    return current.version if current else None


@step
def _register(store: Store, decision: Decision, record: dict[str, Any]) -> Version:
    with store.locked():
        return store.register(f"Register a model: {decision.why}", record)


@step
def _promote(store: Store, version: Version, why: str, servers: tuple[str, ...]) -> None:
    with store.locked():
        promotion.promote(store, version, why, servers)


def _promoted(
    store: Store,
    settings: params.Params,
    version: Version,
    decision: Decision | None,
    live: judging.Champion | None = None,
) -> Night:
    why = decision.why if decision else "its promotion was interrupted"
    _promote(store, version, f"Promote {version.name}: {why}", settings.retrain.servers)
    _remember(store, settings, "promote", why, version.record, live, version.name)
    return Night("Promoted", f"{version.name} is live: {why}", decision, version.name)


def _settled(store: Store, settings: params.Params, live: judging.Champion | None, decision: Decision) -> Night:
    accuracy = {"accuracy": decision.challenger.value} if decision.challenger else {}
    _remember(store, settings, decision.outcome, decision.why, accuracy, live, None)
    return Night(NAMES[decision.outcome], decision.why, decision)


def _remember(
    store: Store,
    settings: params.Params,
    outcome: str,
    why: str,
    record: Any,
    live: judging.Champion | None,
    version: str | None,
) -> None:
    with inside(store.root):
        judged = "accuracy" in record
        history.append(
            store.root,
            {
                "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "outcome": outcome,
                "why": why,
                "accuracy": record.get("accuracy"),
                "challenger": store.fingerprint() if judged else None,
                "champion": live.version.name if live else None,
                "version": version,
                "gate": settings.gate.model_dump(),
            },
        )
