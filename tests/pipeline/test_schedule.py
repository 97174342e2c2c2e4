"""`graft schedule` on a real Prefect server: what fires, what waits, what is cancelled, what is caught up."""

from __future__ import annotations

import datetime
import sys
import zoneinfo
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Api, Repository
from services import running, until

from flows import nightly
from flows.registry import Store

UNFINISHED = ("Scheduled", "Late", "AwaitingConcurrencySlot", "Pending", "Submitting", "Running")
KOLKATA = zoneinfo.ZoneInfo("Asia/Kolkata")  # half an hour off, and no summer time


class Scheduled:
    """A project and what the server knows of its schedule's runs."""

    def __init__(self, project: Repository, api: Api, log: Path) -> None:
        self.project, self._api, self.log = project, api, log
        self.deployment = {"deployments": {"name": {"any_": [nightly.deployment_name(project.root)]}}}

    def serve(self, *options: str) -> Any:
        """`graft schedule` with `options`, while the context lasts."""
        command = [sys.executable, "-m", "graft.cli", "schedule", *options]
        return running(command, self.project.root, self.project.environment, self.log)

    def at_work(self) -> Any:
        """A context in which no run gets further than its beginning: another retraining is at work."""
        return Store(self.project.root).locked(name="retrain")

    def runs(self, *states: str) -> list[dict[str, Any]]:
        """Runs with one of these states' names, by the time they were due."""
        query = {**self.deployment, "sort": "EXPECTED_START_TIME_ASC", "limit": 200}
        found: list[dict[str, Any]] = self._api.post("/flow_runs/filter", query)
        return [run for run in found if run["state_name"] in states or not states]

    def wait(self, condition: Callable[[], Any]) -> Any:
        return until(condition, self.log)

    def due(self, *states: str) -> list[dict[str, Any]]:
        """Runs in these states whose time has come: some are asked for early."""
        now = datetime.datetime.now(datetime.UTC)
        return [run for run in self.runs(*states) if _time(run["expected_start_time"]) < now]

    def made_by_hand(self) -> dict[str, Any]:
        """One more run, as a person starts it on the page."""
        (deployment,) = self._api.post("/deployments/filter", self.deployment)
        made: dict[str, Any] = self._api.post(f"/deployments/{deployment['id']}/create_flow_run")
        return made

    def hand_out(self, run: dict[str, Any]) -> None:
        """What whoever serves the schedule does just before it starts the run's process."""
        said = self._api.post(f"/flow_runs/{run['id']}/set_state", {"state": {"type": "PENDING"}})
        assert said["status"] == "ACCEPT", said

    def switch(self, how: str) -> None:
        """`pause` or `resume` the schedule, as a person does on the page."""
        (deployment,) = self._api.post("/deployments/filter", self.deployment)
        self._api.post(f"/deployments/{deployment['id']}/{how}_deployment")

    def states(self, asked: list[dict[str, Any]]) -> list[str]:
        """The names of their states now."""
        now = {run["id"]: run["state_name"] for run in self.runs()}
        return [now[run["id"]] for run in asked]

    def schedule(self) -> dict[str, Any]:
        """The schedule as the server has it."""
        (deployment,) = self._api.post("/deployments/filter", self.deployment)
        (found,) = deployment["schedules"]
        assert found["active"]
        return dict(found["schedule"])


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


@pytest.fixture
def scheduled(project: Repository, server: str, api: Api, tmp_path: Path) -> Scheduled:
    settings = {"PREFECT_API_URL": server, "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    made = Repository(project.root, {**project.environment, **settings})
    return Scheduled(made, api, tmp_path / "schedule.log")


def test_an_interval_fires_waits_its_turn_and_missed_runs_are_caught_up_once(scheduled: Scheduled) -> None:
    with scheduled.serve("--interval", "3"):
        with scheduled.at_work():
            (first,) = scheduled.wait(lambda: scheduled.runs("Running"))
            assert first["auto_scheduled"]
            scheduled.wait(lambda: scheduled.due("AwaitingConcurrencySlot")[2:])
            assert len(scheduled.runs("Running")) == 1
            scheduled.switch("pause")  # no more of them, or this test would have no end
            waiting = scheduled.due("AwaitingConcurrencySlot")
        scheduled.wait(lambda: scheduled.states([first]) == ["Promoted"])
        # The first of the others to begin looks again, and so has done their work.
        scheduled.wait(lambda: scheduled.states(waiting).count("Superseded") >= 2)
        assert scheduled.states(waiting).count("Unchanged") <= 1
        scheduled.wait(lambda: set(scheduled.states(waiting)) <= {"Superseded", "Unchanged"})
        # Runs are handed out some seconds early: one that is cut short by the end of `serve` would hold the one place.
        scheduled.wait(lambda: not scheduled.runs(*UNFINISHED))
    assert {run["state_type"] for run in scheduled.runs()}.isdisjoint({"FAILED", "CRASHED"})
    scheduled.switch("resume")
    _nights_without_a_machine(scheduled)


def _nights_without_a_machine(scheduled: Scheduled) -> None:
    """Nothing serves, but the server goes on counting: what was missed is one run at the next start.

    A run that was handed out when its process was killed stays pending, and holds the one place there is.
    """
    cut_short = scheduled.made_by_hand()
    scheduled.hand_out(cut_short)
    missed = scheduled.wait(lambda: scheduled.due("Scheduled", "Late")[1:])
    before = {run["id"] for run in scheduled.runs("Promoted", "Unchanged")}
    hour = (datetime.datetime.now(KOLKATA).hour + 12) % 24  # far from now: it must not fire meanwhile
    with scheduled.serve("--cron", f"30 {hour} * * *", "--timezone", "Asia/Kolkata", "--overlap", "cancel"):
        scheduled.wait(lambda: scheduled.states([cut_short]) == ["Crashed"])
        with scheduled.at_work():
            (caught_up,) = scheduled.wait(lambda: scheduled.runs("Running"))
            by_hand = scheduled.made_by_hand()
            scheduled.wait(lambda: scheduled.states([by_hand]) == ["Cancelled"])
            assert scheduled.states([caught_up]) == ["Running"]
        scheduled.wait(lambda: scheduled.states([caught_up]) == ["Unchanged"])
        assert scheduled.due("Scheduled", "Late") == []
    after = {run["id"] for run in scheduled.runs("Promoted", "Unchanged")}
    assert after - before == {caught_up["id"]}
    assert set(scheduled.states(missed)) == {"Superseded"}
    schedule = scheduled.schedule()
    assert (schedule["cron"], schedule["timezone"]) == (f"30 {hour} * * *", "Asia/Kolkata")
    coming = scheduled.wait(lambda: scheduled.runs("Scheduled"))  # the server plans them every few seconds
    times = [_time(run["expected_start_time"]).astimezone(KOLKATA) for run in coming]
    assert {(time.hour, time.minute) for time in times} == {(hour, 30)}


@pytest.mark.parametrize(
    "wrong", [("--cron", "every night"), ("--cron", "0 2 * * *", "--timezone", "Mars/Olympus")], ids=["cron", "zone"]
)
def test_a_wrong_schedule_is_said(scheduled: Scheduled, wrong: tuple[str, ...]) -> None:
    out = scheduled.project.graft("schedule", *wrong, code=2)
    assert out.startswith("graft: --cron wants five fields")
    assert "Traceback" not in out


@pytest.mark.campaign
def test_a_cron_fires_at_its_minute(scheduled: Scheduled) -> None:
    with scheduled.serve("--cron", "* * * * *"):
        (run,) = scheduled.wait(lambda: scheduled.runs("Promoted"))
    assert run["auto_scheduled"]
    assert _time(run["expected_start_time"]).second == 0
