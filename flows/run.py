"""One run of a repository, from the lock to the report: what `graft run` and a scheduled worker share.

In: a `Request`. Out: the stages brought up to date, events for the terminal and for Prefect, an exit code.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from flows import events, orphans, seam
from flows.console import Screen
from flows.engine import Engine
from flows.faults import Stopped
from flows.link import Link, Request, spawn
from flows.locking import run_lock
from flows.project import Project, Stage, find_root, in_git, state_folder
from graft.errors import GraftError

# After Ctrl-C or SIGTERM: how long a stage in this process may take to come back before we leave without it.
STOP_SECONDS = 5.0
# How long Prefect may take to write down the end of a run.
OBSERVER_SECONDS = 120.0


class Run:
    """One run. Call `work` once, in the main thread."""

    def __init__(
        self,
        request: Request,
        *,
        link: Link | None = None,
        prepare: Callable[[Path], None] = lambda root: None,
        next_steps: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Without a `link` to a flow, one is started beside; `prepare` is called under the lock."""
        self._request = request
        self._link = link
        self._prepare = prepare
        self._next_steps = next_steps
        self._observer: subprocess.Popen[bytes] | None = None
        self._screen = Screen()
        self._folder = Path(request.repo).resolve()
        self._root = find_root(self._folder)
        self._mark = orphans.mark(self._root, uuid.uuid4().hex)
        self._lock = threading.Lock()
        self._settled: dict[str, events.Finished | events.Failed] = {}
        self._joined = False
        self._ended = False
        self._stages: list[Stage] = []

    def work(self) -> int:
        """Bring the repository up to date; return the exit code."""
        os.chdir(self._root)
        try:
            with _stoppable(), self._held():
                return self._worked()
        except GraftError as error:
            self._abort(str(error), "failed")
            raise
        except Stopped as stopped:
            self._screen.end()
            self._screen.say("Stopped. Finished stages are kept; the next run continues from here.", "yellow")
            self._abort(str(stopped), "stopped")
            return stopped.exit_code

    @contextmanager
    def _held(self) -> Iterator[None]:
        with run_lock(state_folder(self._root), wait=self._request.wait, waiting=self._screen.say):
            orphans.sweep(orphans.mark(self._root))
            self._prepare(self._root)
            yield

    def _worked(self) -> int:
        self._project = Project(self._root, self._folder)
        self._project.mend()
        self._stages = self._project.plan(self._request.targets)
        if self._link is None and not self._request.force and not any(stage.reason for stage in self._stages):
            self._screen.begin([stage.name for stage in self._stages])
            self._screen.unchanged([stage.name for stage in self._stages])
            self._show_results()
            return 0
        if not in_git(self._root):
            self._screen.say("There is no git here: the run works, but compares nothing with a last commit.")
        misfit = seam.misfit()
        if misfit:
            self._screen.say(f"{misfit}; running every stage isolated, by DVC's own command", "yellow")
        self._engine = Engine(
            self._project,
            self._stages,
            self._tell,
            mark=self._mark,
            force=self._request.force,
            isolate=self._request.isolate,
            native=bool(misfit),
        )
        self._screen.begin([stage.name for stage in self._stages])
        gc.freeze()  # DVC is here to stay: between stages only what they left is looked through
        with nullcontext() if misfit else self._project.running(self._engine.run_commands):
            try:
                self._orchestrated()
            except BaseException:
                self._engine.stop(STOP_SECONDS)
                raise
            finally:
                self._screen.end()
        self._show_results()
        if not self._exit_code():
            self._screen.next_steps(self._next_steps)
        return self._exit_code()

    def _orchestrated(self) -> None:
        """Do what the flow asks for until it says that every stage is settled; then report to it."""
        link = self._link = self._link or self._observed()
        link.send(events.Begun(self._mark))
        link.listen(partial(self._heard, link), lambda: self._engine.call_soon(self._lost))
        self._head_start()
        self._engine.serve(until=lambda: self._ended)
        link.send(self._report())
        link.close()
        self._leave(OBSERVER_SECONDS)

    def _observed(self) -> Link:
        """A link to a flow started in a process beside this one."""
        with (state_folder(self._root) / "prefect.log").open("wb") as out:
            link, self._observer = spawn("flows.observer", self._request, out)
        return link

    def _heard(self, link: Link, event: events.Event) -> None:
        if isinstance(event, events.Joined):
            with self._lock:
                self._joined = True
            link.send(events.Planned([_planned(stage) for stage in self._stages]))
        elif isinstance(event, events.Ask):
            self._engine.start(event.stage, event.attempt)
        elif isinstance(event, events.Ended):
            self._engine.call_soon(self._end)

    def _end(self) -> None:
        self._ended = True

    def _lost(self) -> None:
        if not self._ended:
            raise GraftError(
                f"Prefect ended before the run did (see {state_folder(self._root) / 'prefect.log'}); "
                "finished stages are kept"
            )

    def _head_start(self) -> None:
        """Until the flow has joined, begin one stage after the other: DVC would run it anyway."""
        with self._lock:
            if self._joined:
                return
            done = {name for name, event in self._settled.items() if isinstance(event, events.Finished)}
            ready = next(
                (s for s in self._stages if s.name not in self._settled and done.issuperset(self._needs(s))),
                None,
            )
            if ready is not None:
                self._engine.start(ready.name)

    def _needs(self, stage: Stage) -> set[str]:
        return set(stage.needs) & {other.name for other in self._stages}

    def _tell(self, event: events.Event) -> None:
        self._screen.show(event)
        if self._link is not None:
            self._link.send(event)
        if isinstance(event, events.Finished | events.Failed):
            self._settled[event.stage] = event
            if len(self._settled) == len(self._stages):
                self._screen.waiting()
            self._head_start()

    def _report(self) -> events.Reported:
        results = self._project.results()
        return events.Reported(
            summary={"stages": self._rows(), "metrics": results.metrics},
            metrics=results.metrics_diff,
            params=results.params_diff,
            pictures=results.pictures,
            report=(self._root / results.places["report"]).as_uri() if "report" in results.places else None,
            brief=results.brief,
        )

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for stage in self._stages:
            event = self._settled.get(stage.name)
            state, why, seconds = (event.state, event.why, round(event.seconds, 2)) if event else ("NotRun", "", 0.0)
            rows.append({"name": stage.name, "state": state, "why": why, "seconds": seconds})
        return rows

    def _show_results(self) -> None:
        self._screen.metrics(self._project.metrics())
        self._screen.results(self._project.places())

    def _exit_code(self) -> int:
        codes = [event.exit_code for event in self._settled.values() if isinstance(event, events.Failed)]
        return codes[0] if codes else 0

    def _abort(self, why: str, how: str) -> None:
        """Tell the flow that nothing more comes, and let it write that down if it is up."""
        if self._link is not None:
            self._link.send(events.Aborted(why, how))
            self._link.close()
        self._leave(STOP_SECONDS if self._joined else 0.0)

    def _leave(self, seconds: float) -> None:
        """Give the flow's process some time to end, then end it and its server."""
        if self._observer is None:
            return
        try:
            self._observer.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self._observer.pid, signal.SIGKILL)
            self._observer.wait()


def _planned(stage: Stage) -> dict[str, Any]:
    return {
        "name": stage.name,
        "needs": list(stage.needs),
        "reason": stage.reason,
        "retries": stage.policy.retries,
        "retry_delay": stage.policy.retry_delay,
    }


@contextmanager
def _stoppable() -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM raise `Stopped` in the main thread; a stage that will not let go is left."""

    def stop(signum: int, _frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        code = 128 + signum
        watchdog = threading.Timer(2 * STOP_SECONDS, lambda: os._exit(code))
        watchdog.daemon = True
        watchdog.start()
        raise Stopped(f"stopped by {signal.Signals(signum).name}", code)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show_status(repo: Path, targets: tuple[str, ...]) -> None:
    """Print what a run would do and why; changes nothing and needs neither lock nor server."""
    folder, root = repo.resolve(), find_root(repo)
    os.chdir(root)
    stages = Project(root, folder).plan(targets)
    Screen().plan([(stage.name, stage.needs, stage.reason) for stage in stages])
