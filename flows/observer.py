"""Prefect as a process of its own beside `graft run`, so that its start costs the stages nothing.

The parent process runs the stages and holds TensorFlow; this one holds Prefect, runs the flow and, where
no server is configured, starts a temporary one. The stages' work begins before either is up.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import asdict
from pathlib import Path

from flows.link import spawned
from graft.errors import GraftError


def main(arguments: list[str]) -> int:
    """Run the flow for the worker at the other end of the link."""
    link, request = spawned(arguments)
    ensure_server()
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows.pipeline import adopt, pipeline

    adopt(link)
    # The end of a flow run waits up to a second for the thread of its heartbeat. The worker is at the other end of
    # the link and knows anyway whether this process lives.
    with temporary_settings(set_defaults={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        pipeline(**asdict(request), return_state=True)
    return 0


def ensure_server() -> None:
    """Where no server is configured, start a temporary one for this run while Prefect is imported."""
    if os.environ.get("PREFECT_API_URL") or configured():
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"),
            *("--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"),
        ],
        stdin=subprocess.DEVNULL,
        env={
            **os.environ,
            "PREFECT_UI_ENABLED": "0",
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
        },
    )
    # At exit, after Prefect's own threads have sent their last logs and events.
    atexit.register(_stop, server)
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    threading.Thread(target=_import_prefect, daemon=True).start()
    _await(os.environ["PREFECT_API_URL"], server)


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _import_prefect() -> None:
    with contextlib.suppress(ImportError):  # the flow's own import says what is wrong
        import flows.pipeline  # noqa: F401


def configured() -> bool:
    """Whether the user's active Prefect profile names a server; read without importing Prefect."""
    import tomllib

    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml"))
    with contextlib.suppress(OSError, tomllib.TOMLDecodeError):
        content = tomllib.loads(profiles.read_text(encoding="utf-8"))
        name = os.environ.get("PREFECT_PROFILE", content.get("active", ""))
        return bool(content.get("profiles", {}).get(name, {}).get("PREFECT_API_URL"))
    return False


def _await(url: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers, it ends, or its time is up."""
    end = time.monotonic() + float(os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"])
    while time.monotonic() < end and server.poll() is None:
        with (
            contextlib.suppress(OSError, urllib.error.URLError),
            urllib.request.urlopen(f"{url}/health", timeout=5) as reply,  # noqa: S310 - loopback
        ):
            if reply.status == 200:
                return
        time.sleep(0.05)
    raise GraftError(
        "no Prefect server came up for this run; see that its home (PREFECT_HOME, else ~/.prefect) can be written, or "
        "start one with `graft up`"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
