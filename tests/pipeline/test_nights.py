"""Nights of retraining: a real repository, DVC remote, Prefect server, work pool, worker, and a server under load."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import deliveries
import numpy as np
import pytest
from conftest import ROOT, Api, Repository

from graft import params

PICTURE = np.full((1, 32, 32, 3), 120, np.uint8)
PATIENCE = 400  # seconds, for one night on a busy machine


@contextmanager
def running(command: list[str], folder: Path, environment: dict[str, str], log: Path) -> Iterator[Any]:
    """A process that is stopped in the end."""
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(condition: Callable[[], Any], log: Path) -> Any:
    """What `condition` says as soon as it says something."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.2)
    return found


class Load:
    """Asks a server without pause, from two clients, and keeps what it answers."""

    def __init__(self, url: str) -> None:
        self.answers: Counter[tuple[int, str]] = Counter()
        self._address = (urlsplit(url).hostname or "", urlsplit(url).port or 0)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(2)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        tensor = {"name": "image", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": PICTURE.ravel().tolist()}
        body = json.dumps({"inputs": [tensor]})
        with closing(http.client.HTTPConnection(*self._address, timeout=60)) as connection:
            while not self._stop.wait(0.02):  # the machine has other work, too
                try:
                    connection.request("POST", "/v2/models/prod/infer", body, {"Content-Type": "application/json"})
                    reply = connection.getresponse()
                    version = json.loads(reply.read()).get("model_version", "")
                    self.answers[reply.status, version] += 1
                except (OSError, http.client.HTTPException) as error:
                    self.answers[0, type(error).__name__] += 1
                    return


class Pool:
    """The deployment of prefect.yaml in a work pool with one worker."""

    def __init__(self, api: Api, environment: dict[str, str], log: Path) -> None:
        self._api, self._environment, self.log = api, environment, log

    def prepare(self) -> None:
        self._prefect("work-pool", "create", "graft", "--type", "process")
        self._prefect("--no-prompt", "deploy", "--all")
        query = {"deployments": {"name": {"any_": ["nightly"]}}, "flows": {"name": {"any_": ["retrain"]}}}
        (self.deployment,) = self._api.post("/deployments/filter", query)
        self._api.post(f"/deployments/{self.deployment['id']}/pause_deployment")  # at two at night, too

    def _prefect(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "prefect", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self._environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def night(self, repository: Repository) -> tuple[str, str]:
        """One run of the deployment on `repository`: its state's name and message."""
        body = {"parameters": {"repo": os.fspath(repository.root)}}
        made = self._api.post(f"/deployments/{self.deployment['id']}/create_flow_run", body)

        def ended() -> Any:
            query = {"flow_runs": {"id": {"any_": [made["id"]]}}}
            (run,) = self._api.post("/flow_runs/filter", query)
            return run["state"] if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        state = until(ended, self.log)
        return state["name"], state["message"] or ""


@pytest.fixture
def night_environment(environment: dict[str, str], server: str) -> dict[str, str]:
    return {**environment, "PREFECT_API_URL": server, "PREFECT_WORKER_QUERY_SECONDS": "1"}


@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_five_nights_and_a_rollback_without_a_failed_request(
    tmp_path: Path, night_environment: dict[str, str], api: Api
) -> None:
    project = deliveries.project(tmp_path / "project", night_environment)
    pool = Pool(api, night_environment, tmp_path / "worker.log")
    pool.prepare()
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "graft"]
    with running(worker, ROOT, night_environment, pool.log):
        deliveries.deliver(project, "one", cast=0.7)
        assert pool.night(project)[0] == "Promoted"
        serve = [sys.executable, "-m", "graft.cli", "serve", "--model", "prod", "--port", "0", "--no-access-log"]
        log = tmp_path / "serve.log"
        with running(serve, project.root, night_environment, log):
            url = until(lambda: _address(log), log)
            text = (project.root / "params.yaml").read_text()
            project.write("params.yaml", params.override(text, [f"retrain.servers=['{url}']"]))
            with Load(url) as load:
                outcomes = []
                for night, broken in (
                    ("one again", {"cast": 0.7}),
                    ("three", {"cast": 0.95}),
                    ("four", {"corrupt": 0.15}),
                    ("five", {}),
                ):
                    deliveries.deliver(project, night, **broken)  # type: ignore[arg-type]
                    outcomes.append(pool.night(project))
                said = project.graft("rollback")
                seen = sum(load.answers.values())
                until(lambda: sum(load.answers.values()) > seen + 20, log)
    assert [name for name, _ in outcomes] == ["Kept", "Kept", "Refused", "Promoted"], outcomes
    assert "beyond chance" in outcomes[0][1]
    assert "worse than the champion" in outcomes[1][1]
    assert "unreadable" in outcomes[2][1]
    assert "v1.0.0 is live again" in said
    assert {status for status, _ in load.answers} == {200}
    assert {version for _, version in load.answers} == {"1", "2", "3"}
    assert [night["outcome"] for night in deliveries.history(project)] == [
        *("promote", "keep", "keep", "refuse", "promote", "promote")  # the last is the rollback
    ]
    assert deliveries.tags(project, "model@*") == ["model@v1.0.0", "model@v1.1.0"]
    # Grey pictures were all the server was asked: no new data, but nothing like the test pictures either.
    assert deliveries.retrain(project).startswith("Drifted")
    assert deliveries.tags(project, "model#*") == ["model#prod#1", "model#prod#2", "model#prod#3"]


def _address(log: Path) -> str | None:
    words = log.read_text().split()
    return next((word.strip('",').rstrip("/") for word in words if "http://127.0.0.1:" in word), None)


@pytest.mark.campaign
@pytest.mark.timeout(1200)
def test_broken_deliveries_are_caught_before_training_and_the_champion_stays(
    tmp_path: Path, night_environment: dict[str, str]
) -> None:
    project = deliveries.project(tmp_path / "broken", night_environment)
    deliveries.deliver(project, "one")
    assert deliveries.retrain(project).startswith("Promoted")
    live = deliveries.live(project).read_bytes()
    for delivery, why in (
        ({"turn": 1}, "agrees with only"),
        ({"classes": 2}, "1 of 3 classes are gone (slate)"),
    ):
        deliveries.deliver(project, "one", **delivery)  # type: ignore[arg-type]
        out = project.graft("retrain", code=1)
        last = out.strip().splitlines()[-1]
        assert last.startswith("Refused"), out
        assert why in last
        assert "export" not in project.states(out), "it was trained on"
        assert deliveries.live(project).read_bytes() == live
    assert deliveries.tags(project) == ["model#prod#1", "model@v1.0.0"]


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_an_interval_fires_and_missed_runs_are_caught_up_once(
    tmp_path: Path, night_environment: dict[str, str], api: Api
) -> None:
    project = deliveries.project(tmp_path / "scheduled", night_environment)
    deliveries.deliver(project, "one")
    log = tmp_path / "schedule.log"
    schedule = [sys.executable, "-m", "graft.cli", "schedule", "--interval", "5"]

    def runs(**wanted: Any) -> list[dict[str, Any]]:
        query = {"deployments": {"name": {"any_": ["nightly-scheduled"]}}, "flow_runs": wanted, "limit": 200}
        found: list[dict[str, Any]] = api.post("/flow_runs/filter", query)
        return found

    def ended(*names: str) -> list[dict[str, Any]]:
        return [run for run in runs() if run["state_type"] == "COMPLETED" and run["state_name"] in names]

    with running(schedule, project.root, night_environment, log) as process:
        first = until(lambda: ended("Promoted"), log)
        assert all(run["auto_scheduled"] for run in first)
        process.send_signal(signal.SIGSTOP)
        late = until(lambda: [r for r in runs(state={"name": {"any_": ["Late"]}}) if len(r) > 0][3:], log)
        process.send_signal(signal.SIGCONT)
        until(lambda: ended("Superseded"), log)
        until(lambda: ended("Unchanged"), log)
    assert late
    assert len(first) == 1
    assert deliveries.tags(project) == ["model#prod#1", "model@v1.0.0"]


class _Webhook(http.server.BaseHTTPRequestHandler):
    """Keeps what it is told."""

    told: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        self.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_a_promotion_waits_for_a_person_and_is_told(
    tmp_path: Path, night_environment: dict[str, str], api: Api
) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _Webhook) as webhook:
        thread = threading.Thread(target=webhook.serve_forever)
        thread.start()
        try:
            asked = ("retrain.require_approval=true", f"retrain.webhook=http://127.0.0.1:{webhook.server_port}/")
            project = deliveries.project(tmp_path / "approved", night_environment, *asked)
            deliveries.deliver(project, "one")
            night = project.start("retrain")

            def paused() -> Any:
                assert night.poll() is None, night.communicate()[0]
                query = {"name": {"any_": ["retrain approved"]}, "state": {"type": {"any_": ["PAUSED"]}}}
                return api.post("/flow_runs/filter", {"flow_runs": query})

            (run,) = until(paused, project.root / "params.yaml")
            assert deliveries.tags(project) == []
            api.post(f"/flow_runs/{run['id']}/resume")
            out, _ = night.communicate(timeout=PATIENCE)
        finally:
            webhook.shutdown()
            thread.join()
    assert out.strip().splitlines()[-1].startswith("Promoted"), out
    assert [(told["outcome"], told["version"]) for told in _Webhook.told] == [("Promoted", "v1.0.0")]
