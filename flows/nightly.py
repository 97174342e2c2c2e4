"""The flow `retrain` on this machine: once now, or on a schedule.

In: a project folder. Out: a run's outcome, or a process that runs until it is stopped.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from flows import local, promotion
from flows.look import look
from flows.registry import Store
from graft import params
from graft.errors import GraftError

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

    Raises:
        InputError: no such cron expression or time zone.
        GraftError: no Prefect server is up.
    """
    if not local.server_is_up(root):
        raise GraftError("a schedule needs a Prefect server; start one with `graft up`, in another terminal")
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.schedules import Cron, Interval
    from prefect.types.entrypoint import EntrypointType

    from flows.retrain import retrain

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_HERE), os.environ.get("PYTHONPATH")]))
    strategy = ConcurrencyLimitStrategy.ENQUEUE if queue else ConcurrencyLimitStrategy.CANCEL_NEW
    when: Any = Cron(cron, timezone=timezone) if cron is not None else Interval(interval or 0)
    retrain.serve(
        name=f"{NAME}-{root.name}",
        schedule=when,
        parameters={"repo": str(root)},
        global_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=strategy),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
