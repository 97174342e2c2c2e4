"""What Prefect and people are told of a retraining: artifacts, an event, a webhook; and what they are asked.

In: the outcome of a night. Out: its page in Prefect, `report/history.svg`, one POST.
"""

from __future__ import annotations

import base64
import json
import urllib.request
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger
from prefect.artifacts import create_image_artifact, create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run

from flows.registry import Store
from graft import history
from graft.gate import Decision
from graft.params import Params

if TYPE_CHECKING:
    from flows.retrain import Night

SUPERSEDED = "Superseded"
HISTORY = "report/history.svg"
QUIET = ("Unchanged", "Kept")  # nobody is woken for these
WEBHOOK_SECONDS = 10


def superseded() -> str | None:
    """When the run began that has done this one's work already: it began after this one was due.

    A machine that was off for ten nights finds ten late runs; the first does the work of all.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or run.deployment_id is None or not run.auto_scheduled or run.expected_start_time is None:
        return None
    with get_client(sync_client=True) as client:
        done = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[run.deployment_id]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.COMPLETED, StateType.FAILED])),
                start_time=FlowRunFilterStartTime(after_=run.expected_start_time),
            )
        )
    times = [
        other.start_time for other in done if other.start_time and other.id != run.id and other.state_name != SUPERSEDED
    ]
    return max(times).isoformat(timespec="seconds") if times else None


def approved(decision: Decision, hours: float) -> bool:
    """Pause until somebody presses Resume on this run's page; False once the time is up."""
    create_markdown_artifact(
        f"**A better model waits.** {decision.why}\n\nPress *Resume* to promote it, *Cancel* to keep the live one.",
        key="approval",
    )
    try:
        pause_flow_run(timeout=round(hours * 3600), poll_interval=2)
    except FlowPauseTimeout:
        return False
    return True


def tell(store: Store, settings: Params, night: Night) -> None:
    """Write the night's page, the history's picture, an event that automations can listen to, and the webhook."""
    picture = history.plot(history.read(store.root))
    path = store.root / HISTORY
    path.parent.mkdir(exist_ok=True)
    path.write_text(picture, encoding="utf-8")
    create_markdown_artifact(page(night), key="decision", description="What was decided, and why")
    encoded = base64.b64encode(picture.encode()).decode()
    create_image_artifact(f"data:image/svg+xml;base64,{encoded}", key="history", description="Every night so far")
    said = {"outcome": night.name, "why": night.why, "version": night.version, "project": store.root.name}
    emit_event(
        event=f"graft.retrain.{night.name.lower()}",
        resource={"prefect.resource.id": f"graft.project.{store.root.name}"},
        payload=said,
    )
    if settings.retrain.webhook and night.name not in QUIET:
        _post(settings.retrain.webhook, said)


def page(night: Night) -> str:
    """The decision as Markdown."""
    lines = [f"# {night.name}", "", night.why, ""]
    decision = night.decision
    if decision is None:
        return "\n".join(lines)
    lines += ["| check | | |", "|---|---|---|"]
    lines += [f"| {check.name} | {'✓' if check.passed else '✗'} | {check.says} |" for check in decision.checks]
    if decision.challenger:
        lines += ["", "| | accuracy | 95 % interval |", "|---|---|---|"]
        for name, interval in (("challenger", decision.challenger), ("champion", decision.champion)):
            if interval:
                lines.append(f"| {name} | {interval.value:.2%} | {interval.low:.2%} – {interval.high:.2%} |")
    if decision.champion and decision.test and decision.test.images:
        lines += ["", f"The champion and the paired test are on the {decision.test.images} test pictures new to it."]
    return "\n".join(lines)


def _post(url: str, said: dict[str, Any]) -> None:
    """Tell the webhook. A deaf one changes nothing about the night, but is not passed over in silence."""
    try:
        request = urllib.request.Request(url, json.dumps(said).encode(), {"Content-Type": "application/json"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=WEBHOOK_SECONDS):  # noqa: S310 - the user's own address
            pass
    except (OSError, ValueError) as error:
        get_run_logger().warning("the webhook %s was not told (%s)", url, error)
