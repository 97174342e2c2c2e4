"""The working process's engine: runs the stages it is asked for, and tells events.

In: a `Project` and requests "run this stage now". Out: events. Who asks, and when, is Prefect's affair.
DVC's bookkeeping and the stages' own processes live in threads; `python -m` stages run as functions in
the main thread, one at a time, where signals reach them and libraries expect to be.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from flows.commands import Module, as_module, environment_of_stages, run_command, run_process
from flows.events import Advanced, Event, Failed, Finished, Line, Started
from flows.faults import StageTimedOutError, Stopped, sentence
from flows.inprocess import run_module
from flows.project import Outcome, Project, Stage
from flows.reasons import UNCHANGED
from graft.errors import GraftError


class Engine:
    """Runs stages side by side as far as the machine has room: a core each."""

    def __init__(
        self,
        project: Project,
        stages: list[Stage],
        tell: Callable[[Event], None],
        *,
        mark: str,
        force: bool,
        isolate: bool,
        native: bool = False,
    ) -> None:
        self._project = project
        self._stages = {stage.name: stage for stage in stages}
        self._tell = tell
        self._environment = environment_of_stages(mark)
        self._force = force
        self._isolate = isolate
        self._native = native
        self._room = threading.Semaphore(os.cpu_count() or 1)
        self._turn = threading.Lock()  # of the main thread: one stage in process at a time
        self._main: queue.Queue[Callable[[], None]] = queue.Queue()
        self._stop = threading.Event()
        self._attempts: dict[str, int] = {}
        self._running: set[threading.Thread] = set()

    def start(self, name: str, attempt: int = 1) -> None:
        """Begin an attempt at a stage whose needs are settled; asked twice for it, it runs once."""
        if self._attempts.get(name, 0) >= attempt:
            return
        self._attempts[name] = attempt
        thread = threading.Thread(target=self._work, args=(name, attempt), name=name, daemon=True)
        self._running.add(thread)
        thread.start()

    def call_soon(self, job: Callable[[], None]) -> None:
        """Have the main thread run `job`."""
        self._main.put(job)

    def serve(self, until: Callable[[], bool]) -> None:
        """Be the main thread: run what needs it until `until` holds. Call it in the main thread."""
        while not until():
            self._main.get()()

    def stop(self, seconds: float) -> None:
        """End what is running and wait up to `seconds` for it. Nothing starts any more."""
        self._stop.set()
        end = time.monotonic() + seconds
        for thread in list(self._running):
            thread.join(timeout=max(0.0, end - time.monotonic()))

    def _work(self, name: str, attempt: int) -> None:
        with self._room:
            begin = time.monotonic()
            try:
                reproduce = self._dvc_repro if self._native else self._reproduce
                outcome = reproduce(name, partial(self._began, name, attempt))
                event: Event = Finished(name, attempt, outcome.state, outcome.why, time.monotonic() - begin)
            except Stopped as stopped:
                event = Failed(name, attempt, "Cancelled", str(stopped), time.monotonic() - begin, stopped.exit_code)
            except Exception as error:
                event = self._failed(name, attempt, error, time.monotonic() - begin)
        self._running.discard(threading.current_thread())
        self._tell(event)

    def _began(self, name: str, attempt: int, why: str) -> None:
        self._tell(Started(name, attempt, why))

    def _reproduce(self, name: str, began: Callable[[str], None]) -> Outcome:
        return self._project.reproduce(name, force=self._force, began=began)

    def _dvc_repro(self, name: str, began: Callable[[str], None]) -> Outcome:
        """The stage by DVC's own command in a process: needs nothing of DVC's private parts."""
        why = "forced" if self._force else self._project.reason(name)
        if why is None:
            return Outcome("Unchanged", UNCHANGED)
        began(why)
        lines: list[str] = []

        def on_line(text: str) -> None:
            lines.append(text)
            self._tell(Line(name, text))

        timeout = self._stages[name].policy.timeout
        run_process(
            [sys.executable, "-m", "dvc", "repro", "--single-item", *(["--force"] * self._force), name],
            str(self._project.root),
            {**os.environ, **self._environment},
            on_line=on_line,
            deadline=None if timeout is None else time.monotonic() + timeout,
            stop=self._stop,
        )
        return Outcome("Ran" if any(line.startswith("Running stage") for line in lines) else "Restored", why)

    def _failed(self, name: str, attempt: int, error: Exception, seconds: float) -> Failed:
        fault = error if isinstance(error, GraftError) else sentence(error)
        state = "TimedOut" if isinstance(fault, StageTimedOutError) else "Failed"
        return Failed(name, attempt, state, str(fault), seconds, fault.exit_code)

    def run_commands(self, stage: Any, commands: list[str], folder: str, environment: dict[str, str]) -> None:
        """Run the commands of a `dvc.stage.Stage`; this is what DVC calls in place of its own."""
        name = stage.addressing
        timeout = self._stages[name].policy.timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        environment = {**environment, **self._environment}
        for command in commands:
            if self._stop.is_set():
                raise Stopped("stopped")
            module = as_module(command, folder)
            if module and timeout is None and self._in_process(folder):
                self._in_main(partial(self._run_module, name, module, folder, environment))
            else:
                run_command(
                    command,
                    folder,
                    environment,
                    on_line=lambda text: self._tell(Line(name, text)),
                    deadline=deadline,
                    stop=self._stop,
                )

    def _in_process(self, folder: str) -> bool:
        """Whether a module may run here: only the root can be everybody's current folder."""
        return not self._isolate and Path(folder).samefile(self._project.root)

    def _run_module(self, stage: str, module: Module, folder: str, environment: dict[str, str]) -> None:
        run_module(
            module,
            folder,
            self._project.root,
            environment,
            on_line=lambda text: self._tell(Line(stage, text)),
            on_progress=lambda state: self._tell(_advanced(stage, state)),
        )

    def _in_main(self, job: Callable[[], None]) -> None:
        """Run `job` in the main thread and wait for it; what it raises is raised here."""
        done = threading.Event()
        raised: list[BaseException] = []

        def call() -> None:
            try:
                job()
            except BaseException as error:
                raised.append(error)
                if not isinstance(error, Exception):
                    raise  # Ctrl-C and SIGTERM are the main thread's to handle
            finally:
                done.set()

        with self._turn:
            self.call_soon(call)
            done.wait()
        if raised:
            error = raised[0]
            raise error if isinstance(error, Exception) else Stopped("stopped")


def _advanced(name: str, state: Any) -> Advanced:
    left = float(getattr(state, "seconds_left", float("inf")))
    return Advanced(
        stage=name,
        description=str(state.description),
        done=int(state.done),
        total=int(state.total),
        unit=str(getattr(state, "unit", "")),
        rate=float(getattr(state, "rate", 0.0)),
        seconds_left=None if left == float("inf") else left,
        note=str(getattr(state, "note", "")),
    )
