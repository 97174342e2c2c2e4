"""A flow run on this machine and now, on the Prefect server that is there, or else a temporary one.

In: a project folder. Out: the environment in which the flow, imported afterwards, finds its server.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import urllib.request
from pathlib import Path

from flows import observer
from flows.project import state_folder
from graft.errors import GraftError


def prepare(root: Path) -> None:
    """Make this process ready to import and run a flow: the terminal is ours, Prefect's lines go to its page."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    find_server(root)
    observer.ensure_server()


def server_is_up(root: Path) -> bool:
    """Whether a server is configured, or the one of `graft up` answers."""
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


def start_server(root: Path, port: int) -> None:
    """A Prefect server on loopback until stopped; the other commands in this project find it."""
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


def _known(root: Path) -> Path:
    return state_folder(root) / "server.json"
