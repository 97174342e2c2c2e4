"""Real repositories, a real Prefect server and the real command, for all tests of the pipeline."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from flows import events
from flows.link import Request, spawn

ROOT = Path(__file__).parents[2]
REPOSITORIES = ROOT / "tests" / "repositories"
_SPAWNING = threading.Lock()  # held where os.environ is another's for a moment


class Repository:
    """A DVC repository in a temporary folder, driven by the real commands."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root = root
        self.environment = environment

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "graft.cli", *arguments]

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.root,
            env=self.environment,
            text=True,
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=subprocess.STDOUT,
            **options,
        )

    def graft(self, *arguments: str, code: int = 0) -> str:
        """Run `graft` with `arguments`; its output, once it ended with `code`."""
        process = self.start(*arguments)
        out, _ = process.communicate(timeout=300)
        log = self.root / ".dvc/tmp/graft/prefect.log"
        assert process.returncode == code, f"{out}\n{log.read_text() if log.exists() else ''}"
        return out

    def dvc(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "dvc", *arguments)

    def run(self, *arguments: str) -> str:
        done = subprocess.run(arguments, cwd=self.root, env=self.environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def work(self, *targets: str, isolate: bool = False) -> dict[str, str]:
        """Bring the repository up to date by a real worker, without Prefect: this plays the flow's part.

        It costs half of what `graft run` does, for tests that ask nothing of Prefect. Returns each stage's state.
        """
        with _SPAWNING, mock.patch.dict(os.environ, self.environment):
            request = Request(os.fspath(self.root), targets, isolate=isolate)
            link, process = spawn("flows.worker", request, subprocess.DEVNULL)
        link.send(events.Joined(flow_run=""))
        left: list[dict[str, Any]] = []
        done: dict[str, str] = {}
        count = 0
        for event in link.received():
            if isinstance(event, events.Planned):
                left, count = list(event.stages), len(event.stages)
            elif isinstance(event, events.Finished):
                done[event.stage] = event.state
            elif isinstance(event, events.Reported):
                break
            assert not isinstance(event, events.Failed | events.Aborted), event
            for stage in [stage for stage in left if done.keys() >= set(stage["needs"])]:
                left.remove(stage)
                link.send(events.Ask(stage["name"], 1))
            if isinstance(event, events.Finished) and len(done) == count:
                link.send(events.Ended())
        link.close()
        assert process.wait(60) == 0
        return done

    def lock(self) -> dict[str, Any]:
        """Every dvc.lock of the repository, parsed, by folder."""
        from ruamel.yaml import YAML

        files = sorted(self.root.rglob("dvc.lock"))
        return {os.fspath(file.relative_to(self.root)): YAML(typ="safe").load(file) for file in files}

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))

    def ran(self) -> list[str]:
        """What the stages of the `chain` repository wrote when they began and ended."""
        log = self.root / "ran.log"
        return log.read_text().splitlines() if log.exists() else []

    def states(self, out: str) -> dict[str, str]:
        """Stage and state of each line that tells an outcome."""
        outcomes = ("Ran", "Restored", "Unchanged", "Failed", "TimedOut", "Cancelled")
        return {
            line.split()[1]: line.split()[0]
            for line in out.splitlines()
            if line.split()[:1] and line.split()[0] in outcomes
        }


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of the commands: our code, nobody's own settings, no terminal."""
    home = tmp_path_factory.mktemp("home")
    bin_ = os.fspath(Path(sys.executable).parent)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DVC_"))}
    return {
        **kept,
        "PATH": os.pathsep.join([bin_, os.environ["PATH"]]),
        "PYTHONPATH": os.fspath(ROOT),
        "PREFECT_HOME": os.fspath(home / "prefect"),
        "DVC_SITE_CACHE_DIR": os.fspath(home / "dvc"),
        "DVC_GLOBAL_CONFIG_DIR": os.fspath(home / "dvc-config"),
        "DVC_NO_ANALYTICS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "COLUMNS": "200",
    }


@pytest.fixture(scope="session")
def server(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API address of a real Prefect server on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env={
                **environment,
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "DO_NOT_TRACK": "1",
                # A run that waits for another asks again after a second rather than thirty.
                "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
            },
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}/api"
    end = time.monotonic() + 240
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310 - loopback
                break
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
    yield url
    process.terminate()
    process.wait(30)


class Busy(Exception):  # noqa: N818 - asked again, not an error
    """The server says: not now."""


class Api:
    """Asks the Prefect server what it knows."""

    def __init__(self, url: str) -> None:
        self._url = url

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(  # noqa: S310 - loopback
            self._url + path, json.dumps(body or {}).encode(), {"Content-Type": "application/json"}
        )
        for _ in range(5):
            with contextlib.suppress(Busy, TimeoutError):
                return self._answer(request)
            time.sleep(1)
        raise AssertionError(f"{self._url}{path} stays busy")

    def _answer(self, request: urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310 - loopback
                text = reply.read()
        except urllib.error.HTTPError as error:
            if error.code == 503:  # its database is being written to: Prefect's own client asks again, too
                raise Busy from error
            raise
        return json.loads(text) if text else None

    def flow_run(self, name: str) -> dict[str, Any]:
        """The latest flow run with this name: the repository's folder."""
        query = {"flow_runs": {"name": {"any_": [name]}}, "sort": "EXPECTED_START_TIME_DESC", "limit": 1}
        (found,) = self.post("/flow_runs/filter", query)
        return found

    def task_runs(self, name: str) -> dict[str, dict[str, Any]]:
        """The task runs there are, by name; each in the state that the server knows so far."""
        run = self.flow_run(name)
        found = self.post("/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        return {task["name"]: task for task in found}

    def settled(self, name: str) -> dict[str, dict[str, Any]]:
        """The task runs of a flow run that has ended: the server writes their states a little after its own."""
        end = time.monotonic() + 60
        while True:
            found = self.task_runs(name)
            if all(_settled(task) for task in found.values()):
                return found
            assert time.monotonic() < end, found
            time.sleep(0.2)

    def logs(self, name: str) -> list[str]:
        run = self.flow_run(name)
        query = {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "sort": "TIMESTAMP_ASC"}
        return [log["message"] for log in self.post("/logs/filter", query)]

    def artifacts(self, name: str) -> list[dict[str, Any]]:
        run = self.flow_run(name)
        return self.post("/artifacts/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})


def _settled(task: dict[str, Any]) -> bool:
    state = task["state"] or {"type": None, "name": None}
    return state["type"] in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED") or state["name"] == "NotReady"


@pytest.fixture(scope="session")
def api(server: str) -> Api:
    return Api(server)


@pytest.fixture
def repository(tmp_path: Path, environment: dict[str, str], server: str) -> Callable[..., Repository]:
    """Copies a repository of tests/repositories, under git and DVC, with a run's flows on the real server."""

    def make(name: str, copy: str = "", git: bool = True) -> Repository:
        root = tmp_path / f"{tmp_path.name}-{copy or name}"
        shutil.copytree(REPOSITORIES / name, root)
        made = Repository(root, {**environment, "PREFECT_API_URL": server})
        made.write(".dvc/.gitignore", "/config.local\n/tmp\n/cache\n")
        made.write(".dvc/config", "[core]\n    analytics = false\n")
        if git:
            made.run("git", "init", "-q", "-b", "main")
            made.run("git", "add", "-A")
            made.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "start")
        return made

    return make


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """A project to retrain whose pipeline has run once, and where `dvc status` agrees that it has."""
    import deliveries

    root = tmp_path_factory.mktemp("template") / "project"
    made = deliveries.project(root, environment)
    deliveries.deliver(made, "one", cast=0.7)
    deliveries.bring_up_to_date(made)
    assert "up to date" in made.dvc("status")
    return root


@pytest.fixture
def project(template: Path, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A copy of it, with its pipeline's model not registered yet; this process may use DVC there, too."""
    for name in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR", "DVC_NO_ANALYTICS"):
        monkeypatch.setenv(name, environment[name])
    root = tmp_path / "project"
    shutil.copytree(template, root, symlinks=True)
    return Repository(root, environment)
