"""Nights of retraining: a real repository, DVC remote, Prefect server, work pool, worker, and a server under load."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import deliveries
import numpy as np
import pytest
from conftest import ROOT, Api, Repository
from services import PATIENCE, running, until
from test_versions import check_whole

from flows.registry import Store
from graft import params

PICTURE = np.full((1, 32, 32, 3), 120, np.uint8)


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
        found = self._api.post("/deployments/filter", {"work_pools": {"name": {"any_": ["graft"]}}})
        self._deployments = {deployment["name"]: deployment["id"] for deployment in found}
        self._api.post(f"/deployments/{self._deployments['nightly']}/pause_deployment")  # at two at night, too

    def _prefect(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "prefect", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self._environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def run(self, deployment: str, **parameters: str) -> tuple[str, str]:
        """One run of the deployment: its state's name and message."""
        made = self._api.post(
            f"/deployments/{self._deployments[deployment]}/create_flow_run", {"parameters": parameters}
        )

        def ended() -> Any:
            query = {"flow_runs": {"id": {"any_": [made["id"]]}}}
            (run,) = self._api.post("/flow_runs/filter", query)
            return run["state"] if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        state = until(ended, self.log)
        return state["name"], state["message"] or ""

    def night(self, repository: Repository) -> tuple[str, str]:
        """One retraining."""
        return self.run("nightly", repo=os.fspath(repository.root))


@pytest.fixture
def night_environment(environment: dict[str, str], server: str) -> dict[str, str]:
    return {**environment, "PREFECT_API_URL": server, "PREFECT_WORKER_QUERY_SECONDS": "1"}


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
                    ("one", {"cast": 0.7, "more": 1}),
                    ("three", {"cast": 0.95}),
                    ("four", {"corrupt": 0.15}),
                    ("five", {}),
                ):
                    deliveries.deliver(project, night, **broken)  # type: ignore[arg-type]
                    outcomes.append(pool.night(project))
                said = project.graft("rollback")
                scored = pool.run("batch", repo=os.fspath(project.root), source="data/raw", out="scores.csv")
                seen = sum(load.answers.values())
                until(lambda: sum(load.answers.values()) > seen + 20, log)
    assert [name for name, _ in outcomes] == ["Kept", "Kept", "Refused", "Promoted"], outcomes
    assert "beyond chance" in outcomes[0][1]
    assert "worse than the champion" in outcomes[1][1]
    assert "unreadable" in outcomes[2][1]
    assert "v1.0.0 is live again" in said
    assert scored[0] == "Completed", scored
    assert len((project.root / "scores.csv").read_text().splitlines()) == 361
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


class Sleepless:
    """A process that runs the flow once whenever it is told to: Prefect is imported once for all nights."""

    CODE = """
import json, sys
from flows.retrain import retrain
for _ in sys.stdin:
    state = retrain(repo=sys.argv[1], return_state=True)
    print(json.dumps([state.name, state.message]), flush=True)
"""

    def __init__(self, project: Repository, environment: dict[str, str], log: Path) -> None:
        self._project, self._log = project, log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", self.CODE, os.fspath(project.root)],
                cwd=project.root,
                env=environment,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    def __enter__(self) -> Sleepless:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def night(self, outcome: str, why: str) -> None:
        """Run the flow, and see that it ended so and for this reason."""
        assert self._process.stdin
        assert self._process.stdout
        print("go", file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("["):
                break
        else:
            raise AssertionError(self._log.read_text()[-3000:])
        name, message = json.loads(line)
        assert name == outcome, message
        assert why in message


def test_whatever_is_delivered_or_down_the_champion_stays_and_a_retry_works(
    project: Repository, night_environment: dict[str, str], tmp_path: Path
) -> None:
    store, away = tmp_path / "store", tmp_path / "away"

    def live() -> tuple[bytes, list[str]]:
        return deliveries.live(project).read_bytes(), deliveries.tags(project)

    with Sleepless(project, night_environment, tmp_path / "nights.log") as at_work:
        at_work.night("Promoted", "v1.0.0 is live")
        champion = live()
        for broken, why in (
            ({"turn": 1}, "agrees with only"),
            ({"classes": 2}, "1 of 3 classes are gone (slate)"),
            ({"corrupt": 0.1}, "unreadable"),
        ):
            deliveries.deliver(project, "two", **broken)  # type: ignore[arg-type]
            exported = (project.root / "models/onnx/model.fp32.onnx").stat().st_mtime_ns
            at_work.night("Refused", why)
            assert (project.root / "models/onnx/model.fp32.onnx").stat().st_mtime_ns == exported, "it was trained on"
            assert live() == champion
        deliveries.deliver(project, "two")
        store.rename(away)
        store.write_text("no folder")
        at_work.night("Failed", "the DVC remote store takes no data")
        assert live() == champion
        store.unlink()
        away.rename(store)
        at_work.night("Promoted", "v1.1.0 is live")
        at_work.night("Unchanged", "nothing changed")
    outcomes = [night["outcome"] for night in deliveries.history(project)]
    assert outcomes == ["promote", "refuse", "refuse", "refuse", "promote"]


class _Webhook(http.server.BaseHTTPRequestHandler):
    """Keeps what it is told."""

    told: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        self.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_promotion_waits_for_a_person_and_is_told(
    project: Repository, night_environment: dict[str, str], api: Api, tmp_path: Path
) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _Webhook) as webhook:
        thread = threading.Thread(target=webhook.serve_forever)
        thread.start()
        try:
            asked = ["retrain.require_approval=true", f"retrain.webhook=http://127.0.0.1:{webhook.server_port}/"]
            project.write("params.yaml", params.override((project.root / "params.yaml").read_text(), asked))
            night = Repository(project.root, night_environment).start("retrain")
            query = {"name": {"any_": ["retrain project"]}, "state": {"type": {"any_": ["PAUSED"]}}}
            (run,) = until(lambda: api.post("/flow_runs/filter", {"flow_runs": query}), project.root / "params.yaml")
            assert deliveries.tags(project) == []
            api.post(f"/flow_runs/{run['id']}/resume")
            out, _ = night.communicate(timeout=PATIENCE)
        finally:
            webhook.shutdown()
            thread.join()
    assert out.strip().splitlines()[-1].startswith("Promoted"), out
    assert [(told["outcome"], told["version"]) for told in _Webhook.told] == [("Promoted", "v1.0.0")]


@pytest.mark.campaign
def test_killed_at_any_moment_and_run_again_it_ends_in_one_state(
    project: Repository, night_environment: dict[str, str], tmp_path: Path
) -> None:
    night, store = Repository(project.root, night_environment), Store(project.root)
    assert deliveries.retrain(night).startswith("Promoted")
    deliveries.deliver(night, "two")
    with (tmp_path / "log").open("w") as log:
        for seconds in range(1, 13):  # each gets a little further than the one before, until one ends by itself
            process = night.start("retrain", stdout=log)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            process.kill()
            process.wait()
            check_whole(project, store)
    assert deliveries.retrain(night).split()[0] in ("Promoted", "Unchanged")
    assert deliveries.tags(project) == ["model#prod#1", "model#prod#2", "model@v1.0.0", "model@v1.1.0"]
    assert deliveries.retrain(night).startswith("Unchanged")
