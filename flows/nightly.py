"""What surrounds the flow `retrain` on this machine: a server to ask, one run now, a schedule.

In: a project folder. Out: a run's outcome, or a process that runs until it is stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import urllib.request
from pathlib import Path
from typing import Any

from flows import observer, promotion
from flows.look import look
from flows.project import state_folder
from flows.registry import Store
from flows.run import QUIET
from graft import params
from graft.errors import GraftError

NAME = "nightly"
UNCHANGED = "Unchanged"
_HERE = Path(__file__).parents[1]


def run(root: Path, accept_data: bool, force: bool) -> tuple[str, str]:
    """One retraining now, as a flow run; its state's name and its reason. Nothing to do needs no flow run."""
    _quiet()
    if idle := _idle(root, force):
        return idle
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    find_server(root)
    observer.ensure_server()
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
    if settings.retrain.require_approval and not _server_is_up(root):
        raise GraftError("retrain.require_approval wants a Prefect page to approve on; start one with `graft up`")
    return None


def serve(root: Path, *, cron: str | None, interval: float | None, timezone: str, queue: bool) -> None:
    """Serve the flow on a schedule until stopped; each run is a process of its own.

    Raises:
        GraftError: no Prefect server is up.
    """
    _quiet()
    if not _server_is_up(root):
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


def start_server(root: Path, port: int) -> None:
    """A Prefect server on loopback until stopped; the other commands in this project find it."""
    _quiet()
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise GraftError(
                f"port {port} is taken ({error.strerror}); stop what holds it, or choose another: --port"
            ) from error
    url = f"http://127.0.0.1:{port}"
    known = _known(root)
    known.parent.mkdir(parents=True, exist_ok=True)
    known.write_text(json.dumps({"api": f"{url}/api"}), encoding="utf-8")
    print(f"Prefect's page: {url}   (Ctrl-C stops it; runs and schedules are kept)", flush=True)  # noqa: T201
    # In this process's place: signals reach the server itself, and its banner would repeat the line above.
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 1)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    # The page asks the address it is told, which is port 4200 unless said otherwise.
    settings = {"PREFECT_LOGGING_LEVEL": "WARNING", "PREFECT_SERVER_UI_API_URL": f"{url}/api"}
    os.execve(sys.executable, command, {**os.environ, **settings})  # noqa: S606


def _server_is_up(root: Path) -> bool:
    find_server(root)
    return bool(os.environ.get("PREFECT_API_URL")) or observer.configured()


def find_server(root: Path) -> None:
    """Where no server is configured, take the one that `graft up` started here, if it answers."""
    if os.environ.get("PREFECT_API_URL") or observer.configured():
        return
    with contextlib.suppress(OSError, ValueError, KeyError):
        api = json.loads(_known(root).read_text(encoding="utf-8"))["api"]
        with urllib.request.urlopen(f"{api}/health", timeout=5) as reply:  # noqa: S310 - loopback
            if reply.status == 200:
                os.environ["PREFECT_API_URL"] = api


def _known(root: Path) -> Path:
    return state_folder(root) / "server.json"


def _quiet() -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
