"""Any dvc.yaml as a Prefect flow: DVC decides whether a stage runs, Prefect when.

In: a repository. Out: one task run per stage, named like it, and a small summary of what happened. The
flow only orchestrates; a worker process beside it (`flows.work`) does DVC's part and runs the stages.
"""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows import artifacts, events
from flows.faults import StageFailed
from flows.link import Link, Request, spawn
from graft.errors import GraftError


class Worker:
    """The flow's view of the worker process: asks for stages, and hands out each one's events."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._inboxes: defaultdict[str, queue.Queue[events.Event]] = defaultdict(queue.Queue)
        self._whole: queue.Queue[events.Event] = queue.Queue()
        self._lock = threading.Lock()
        self.gone: events.Aborted | None = None
        link.listen(self._sort, self._closed)

    def _sort(self, event: events.Event) -> None:
        stage = getattr(event, "stage", None)
        if isinstance(event, events.Aborted):
            self.gone = event
        (self._inbox(stage) if stage else self._whole).put(event)

    def _inbox(self, stage: str) -> queue.Queue[events.Event]:
        with self._lock:
            return self._inboxes[stage]

    def _closed(self) -> None:
        self.gone = self.gone or events.Aborted("the working process was killed", 1)
        with self._lock:
            inboxes = [self._whole, *self._inboxes.values()]
        for inbox in inboxes:
            inbox.put(self.gone)

    def joined(self) -> events.Planned:
        """Tell the worker that the flow run exists; return its plan."""
        self._link.send(events.Joined(flow_run=str(flow_run.id or "")))
        planned = self._next(self._whole)
        assert isinstance(planned, events.Planned)
        self._mark = planned.mark
        return planned

    def attempt(self, stage: str, attempt: int) -> Iterator[events.Event]:
        """Have the worker run one attempt at a stage; its events, the last one Finished or Failed."""
        self._link.send(events.Ask(stage, attempt))
        while True:
            event = self._next(self._inbox(stage))
            if getattr(event, "attempt", attempt) != attempt:
                continue  # of an attempt that the flow already took for lost
            yield event
            if isinstance(event, events.Finished | events.Failed):
                return

    def ended(self) -> events.Reported:
        """Tell the worker that every stage is settled; return its report."""
        self._link.send(events.Ended())
        reported = self._next(self._whole)
        assert isinstance(reported, events.Reported)
        return reported

    def _next(self, inbox: queue.Queue[events.Event]) -> events.Event:
        if self.gone and inbox.empty():
            raise StageFailed(self.gone.why, self.gone.exit_code)
        event = inbox.get()
        if isinstance(event, events.Aborted):
            inbox.put(event)  # for whoever asks next
            raise StageFailed(event.why, event.exit_code)
        return event


@contextmanager
def connected(request: Request) -> Iterator[Worker]:
    """The worker that started this process, or else one started for this flow run."""
    link, process = (_adopted.pop(), None) if _adopted else spawn("flows.worker", request)
    try:
        yield Worker(link)
    finally:
        link.close()
        if process:
            process.wait()


# The link of the worker that started this process (`graft run`), until the first flow run takes it.
_adopted: list[Link] = []


def adopt(link: Link) -> None:
    """Let the next flow run in this process use the worker at the other end of `link`."""
    _adopted.append(link)


@task(cache_policy=NO_CACHE, persist_result=False)
def run_stage(worker: Worker, stage: str) -> State[dict[str, Any]]:
    """One stage: its lines become logs, its loops a progress artifact, its outcome this task's state."""
    context = TaskRunContext.get()
    attempt = context.task_run.run_count if context else 1
    logger = get_run_logger()
    progress = artifacts.ProgressArtifact(stage)
    for event in worker.attempt(stage, attempt):
        if isinstance(event, events.Started):
            logger.info("%s", event.why)
        elif isinstance(event, events.Line):
            logger.info("%s", event.text)
        elif isinstance(event, events.Advanced):
            progress.update(event)
        elif isinstance(event, events.Finished):
            return Completed(name=event.state, message=event.why, data={"state": event.state, "why": event.why})
        elif isinstance(event, events.Failed):
            raise StageFailed(f"{stage}: {event.why}", event.exit_code)
    raise AssertionError("a stage's events end with its outcome")


def _flow_run_name() -> str:
    return Path(str(flow_run.parameters.get("repo", "."))).resolve().name


@flow(
    name="pipeline",
    flow_run_name=_flow_run_name,
    task_runner=ThreadPoolTaskRunner(max_workers=1000),  # type: ignore[arg-type]
    persist_result=False,
    validate_parameters=False,
)
def pipeline(
    repo: str = ".", targets: Sequence[str] = (), force: bool = False, isolate: bool = False, wait: bool = True
) -> dict[str, Any]:
    """Bring the repository at `repo` up to date with its dvc.yaml.

    Args:
        repo: a folder inside a DVC repository.
        targets: stages to bring up to date, with what they need; none means all.
        force: run the stages even where nothing changed.
        isolate: give each stage a process of its own.
        wait: where another run holds the repository, wait for it instead of failing.

    Returns:
        `{"stages": [{"name", "state", "why", "seconds"}, …], "metrics": {file: {…}}}`

    Raises:
        GraftError: a stage failed, or the input is wrong; one sentence.
    """
    with connected(Request(repo, tuple(targets), force, isolate, wait)) as worker:
        plan = worker.joined()
        futures: dict[str, PrefectFuture[Any]] = {}
        for stage in plan.stages:
            futures[stage["name"]] = run_stage.with_options(
                name=stage["name"],
                task_run_name=stage["name"],
                retries=stage["retries"],
                retry_delay_seconds=stage["retry_delay"],
            ).submit(worker, stage["name"], wait_for=[futures[name] for name in stage["needs"] if name in futures])
        for future in futures.values():
            future.wait()
        report = worker.ended()
        artifacts.publish(report)
        failed = [stage for stage in report.summary["stages"] if stage["state"] in ("Failed", "TimedOut")]
        if failed:
            raise GraftError("; ".join(f"{stage['name']}: {stage['why']}" for stage in failed))
        return report.summary
