"""Any dvc.yaml as a Prefect flow: DVC decides whether a stage runs, Prefect when.

In: a repository. Out: one task run per stage, named like it, and a small summary of what happened. The
flow only orchestrates; a worker process beside it (`flows.work`) does DVC's part and runs the stages.
"""

from __future__ import annotations

import queue
import subprocess
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from prefect import Task, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Crashed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows import artifacts, events, orphans
from flows.faults import StageFailedError
from flows.link import Link, Request, spawn
from graft.errors import GraftError

# How long a worker may take to end once nothing is asked of it.
WORKER_SECONDS = 15.0

E = TypeVar("E", bound=events.Event)


class WorkerGoneError(Exception):
    """The worker will say no more: it was stopped, or it was killed."""

    def __init__(self, last: events.Aborted) -> None:
        super().__init__(last.why)
        self.last = last

    def state(self) -> State[Any]:
        """The state of whatever waited for it."""
        make = {"stopped": Cancelled, "failed": Failed, "killed": Crashed}[self.last.how]
        return make(message=self.last.why, data=GraftError(self.last.why))


class Worker:
    """The flow's view of the worker process: asks for stages, and hands out each one's events."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._inboxes: defaultdict[str, queue.Queue[events.Event]] = defaultdict(queue.Queue)
        self._lock = threading.Lock()
        self._gone: events.Aborted | None = None
        self._mark = ""
        link.listen(self._sort, self._closed)

    def _sort(self, event: events.Event) -> None:
        if isinstance(event, events.Aborted):
            self._give_up(event)
        elif isinstance(event, events.Begun):
            self._mark = event.mark
        else:
            self._inbox(getattr(event, "stage", "")).put(event)

    def _inbox(self, stage: str) -> queue.Queue[events.Event]:
        with self._lock:
            return self._inboxes[stage]

    def _closed(self) -> None:
        if self._mark and not self._gone:
            orphans.sweep(self._mark)
        self._give_up(events.Aborted("the working process was killed; the next run continues from here", "killed"))

    def _give_up(self, last: events.Aborted) -> None:
        with self._lock:
            self._gone = self._gone or last
            for inbox in self._inboxes.values():
                inbox.put(self._gone)

    def joined(self) -> events.Planned:
        """Tell the worker that the flow run exists; return its plan."""
        self._link.send(events.Joined(flow_run=str(flow_run.id or "")))
        return self._next("", events.Planned)

    def attempt(self, stage: str, attempt: int) -> Iterator[events.Event]:
        """Have the worker run one attempt at a stage; its events, the last one Finished or Failed."""
        self._link.send(events.Ask(stage, attempt))
        while True:
            event = self._next(stage, events.Event)
            yield event
            if isinstance(event, events.Finished | events.Failed):
                return

    def ended(self) -> events.Reported:
        """Tell the worker that every stage is settled; return its report."""
        self._link.send(events.Ended())
        return self._next("", events.Reported)

    def _next(self, stage: str, kind: type[E]) -> E:
        inbox = self._inbox(stage)
        with self._lock:
            if self._gone and inbox.empty():
                raise WorkerGoneError(self._gone)
        event = inbox.get()
        if isinstance(event, events.Aborted):
            raise WorkerGoneError(event)
        if not isinstance(event, kind):
            raise TypeError(f"the worker sent {event}, wanted {kind.__name__}")
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
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a worker whose link is closed; it ends by itself unless it still waits for another run."""
    try:
        process.wait(WORKER_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()


# The link of the worker that started this process (`graft run`), until the first flow run takes it.
_adopted: list[Link] = []


def adopt(link: Link) -> None:
    """Let the next flow run in this process use the worker at the other end of `link`."""
    _adopted.append(link)


@task(cache_policy=NO_CACHE, persist_result=False)
def run_stage(worker: Worker, stage: str) -> State[Any]:
    """One stage: its lines become logs, its loops a progress artifact, its outcome this task's state."""
    context = TaskRunContext.get()
    attempt = context.task_run.run_count if context else 1
    try:
        return _attempted(worker, stage, attempt)
    except WorkerGoneError as gone:
        return gone.state()


def _attempted(worker: Worker, stage: str, attempt: int) -> State[Any]:
    logger = get_run_logger()
    progress = artifacts.ProgressArtifact()
    for event in worker.attempt(stage, attempt):
        if isinstance(event, events.Started):
            logger.info("%s", event.why)
        elif isinstance(event, events.Line):
            logger.info("%s", event.text)
        elif isinstance(event, events.Advanced):
            progress.update(event)
        elif isinstance(event, events.Finished):
            return Completed(name=event.state, message=event.why)
        elif isinstance(event, events.Failed):
            logger.error("%s", event.why)
            make = Cancelled if event.state == "Cancelled" else Failed
            return make(name=event.state, message=event.why, data=StageFailedError(event.why, event.exit_code))
    raise AssertionError("a stage's events end with its outcome")


def _flow_run_name() -> str:
    return Path(str(flow_run.parameters.get("repo", "."))).resolve().name


@flow(
    name="pipeline",
    flow_run_name=_flow_run_name,
    # Threads only wait here; what may run side by side is the worker's to know.
    task_runner=ThreadPoolTaskRunner(max_workers=1000),  # type: ignore[arg-type]
    persist_result=False,
)
def pipeline(
    repo: str = ".",
    targets: Sequence[str] = (),
    force: bool = False,
    isolate: bool = False,
    wait: bool = True,
) -> dict[str, Any]:
    """Bring the repository at `repo` up to date with its dvc.yaml.

    Args:
        repo: the folder of a dvc.yaml inside a DVC repository.
        targets: stages or dvc.yaml files to bring up to date, with what they need; none means the folder's own.
        force: run the stages even where nothing changed.
        isolate: give each stage a process of its own.
        wait: where another run holds the repository, wait for it instead of failing.

    Returns:
        `{"stages": [{"name", "state", "why", "seconds"}, …], "metrics": {file: {name: value}}}`

    Raises:
        GraftError: a stage failed, or the input is wrong; one sentence.
    """
    try:
        with connected(Request(repo, tuple(targets), force, isolate, wait)) as worker:
            summary: dict[str, Any] = _orchestrated(worker)
            return summary
    except WorkerGoneError as gone:
        return gone.state()  # type: ignore[return-value]  # Prefect takes a state for a result


def _orchestrated(worker: Worker) -> Any:
    futures: dict[str, PrefectFuture[Any]] = {}
    for stage in worker.joined().stages:
        named: Task[..., Any] = run_stage.with_options(
            name=stage["name"],
            task_run_name=stage["name"],
            retries=stage["retries"],
            retry_delay_seconds=stage["retry_delay"],
        )
        needs = [futures[name] for name in stage["needs"] if name in futures]
        futures[stage["name"]] = named.submit(worker, stage["name"], wait_for=needs)
    for future in futures.values():
        future.wait()
    report = worker.ended()
    artifacts.publish(report)
    failed = [stage for stage in report.summary["stages"] if stage["state"] in ("Failed", "TimedOut")]
    if failed:
        why = "; ".join(f"{stage['name']}: {stage['why']}" for stage in failed)
        return Failed(message=why, data=GraftError(why))
    return report.summary
