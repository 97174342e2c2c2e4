"""The flow `retrain` on this machine: once now, or on a schedule.

In: a project folder. Out: a run's outcome, or a process that runs until it is stopped.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import local, promotion
from flows.look import look
from flows.registry import Store
from graft import params
from graft.errors import GraftError, InputError

if TYPE_CHECKING:
    from prefect.schedules import Schedule

NAME = "nightly"
UNCHANGED = "Unchanged"
_HERE = Path(__file__).parents[1]


def run(root: Path, accept_data: bool, force: bool) -> tuple[str, str]:
    """One retraining now, as a flow run; its state's name and its reason. Nothing to do needs no flow run."""
    if idle := _idle(root, force):
        return idle
    local.prepare(root)
    from flows.retrain import retrain

    state = retrain(repo=str(root), accept_data=accept_data, force=force, return_state=True)
    return str(state.name), state.message or ""


def _idle(root: Path, force: bool) -> tuple[str, str] | None:
    """The outcome where there is nothing to do; None leaves everything else to the flow, errors too."""
    settings = params.load(root / params.FILE)
    store = Store(root, settings.retrain.git_remote, settings.retrain.branch)
    with contextlib.suppress(GraftError), store.locked(print, "retrain"):
        with store.locked():
            store.fetch()
            promotion.settle(store, ())
        found = look(store, settings, force)
        if not found.something and not (found.drift and found.drift.alarms):
            return UNCHANGED, found.why
    if settings.retrain.require_approval and not local.server_is_up(root):
        raise GraftError("retrain.require_approval wants a Prefect page to approve on; start one with `graft up`")
    return None


def serve(root: Path, *, cron: str | None, interval: float | None, timezone: str, queue: bool) -> None:
    """Serve the flow on a schedule until stopped; each run is a process of its own.

    The server goes on counting while nothing serves: runs that were due meanwhile are caught up by one, at the start.

    Raises:
        InputError: no such cron expression or time zone.
        GraftError: no Prefect server is up.
    """
    schedule = _schedule(cron, interval, timezone)
    if not local.server_is_up(root):
        raise GraftError("a schedule needs a Prefect server; start one with `graft up`, in another terminal")
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.types.entrypoint import EntrypointType

    from flows.retrain import retrain

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_HERE), os.environ.get("PYTHONPATH")]))
    strategy = ConcurrencyLimitStrategy.ENQUEUE if queue else ConcurrencyLimitStrategy.CANCEL_NEW
    name = deployment_name(root)
    _catch_up(Store(root), name)
    retrain.serve(
        name=name,
        schedule=schedule,
        parameters={"repo": str(root)},
        global_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=strategy),
        pause_on_shutdown=False,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def deployment_name(root: Path) -> str:
    """Of the schedule of the project at `root`: two projects may share a folder's name, and a server."""
    return f"{NAME}-{root.name}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:6]}"


def _schedule(cron: str | None, interval: float | None, timezone: str) -> Schedule:
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.schedules import Cron, Interval

    if cron is None:
        return Interval(interval or 0)
    try:
        CronSchedule(cron=cron, timezone=timezone)
    except ValueError as error:
        raise InputError(
            f"--cron wants five fields, such as '0 2 * * *' for two at night, and --timezone a name such as "
            f"Europe/Berlin. Received: {cron!r}, {timezone}"
        ) from error
    return Cron(cron, timezone=timezone)


def _catch_up(store: Store, deployment: str) -> None:
    """Where runs were due while nobody served them, make one to do the work of all.

    A run that was begun when the schedule was stopped holds the one place there is for minutes after, and all others
    would wait for it or be cancelled. So it is ended first, unless a retraining really is at work here.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType
    from prefect.states import Completed, Crashed

    named = filters.DeploymentFilter(name=filters.DeploymentFilterName(any_=[deployment]))

    def those(*states: StateType, **more: Any) -> Any:
        kinds = filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=list(states)))
        return client.read_flow_runs(
            flow_run_filter=filters.FlowRunFilter(state=kinds, **more), deployment_filter=named
        )

    before = filters.FlowRunFilterExpectedStartTime.model_validate({"before_": datetime.datetime.now(datetime.UTC)})
    with get_client(sync_client=True) as client:
        begun = [] if store.at_work() else those(StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
        for run in begun:
            client.set_flow_run_state(run.id, Crashed(message="the schedule was stopped while this run was under way"))
        due = those(StateType.SCHEDULED, expected_start_time=before)
        missed = [run for run in due if run.auto_scheduled]
        for run in missed:
            message = "missed while nothing served the schedule; one run catches up"
            client.set_flow_run_state(run.id, Completed(name="Superseded", message=message))
        if (found := [*begun, *missed]) and len(missed) == len(due):  # else a person's own run does the work
            client.create_flow_run_from_deployment(found[0].deployment_id)
