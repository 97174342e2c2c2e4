"""A run where no Prefect server is configured: a temporary one serves it, is gone after, and calls nobody."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator

import psutil
import pytest
from conftest import Repository


@pytest.fixture
def outside() -> Iterator[tuple[str, list[str]]]:
    """The address of a proxy through which whatever is not on this machine would be asked, and what was asked."""
    asked: list[str] = []

    class Proxy(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            asked.append(self.rfile.readline().decode().strip())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_address[1]}", asked
        proxy.shutdown()


def test_a_temporary_server_serves_the_run_and_nothing_leaves_the_machine(repository, outside):
    address, asked = outside
    made = repository("chain")
    for name in ("PREFECT_API_URL", "PREFECT_SERVER_ANALYTICS_ENABLED", "DO_NOT_TRACK", "DVC_NO_ANALYTICS", "CI"):
        made.environment.pop(name, None)
    made.environment |= {"HTTP_PROXY": address, "HTTPS_PROXY": address, "NO_PROXY": "127.0.0.1,localhost"}
    out = made.graft("run")
    assert set(made.states(out).values()) == {"Ran"}
    assert not asked
    assert not [process.cmdline() for process in psutil.process_iter() if _server_of(process, made.root)]


def _server_of(process: psutil.Process, root: object) -> bool:
    try:
        return process.cwd() == str(root) and "uvicorn" in process.cmdline()
    except psutil.Error:
        return False


def test_a_temporary_server_that_cannot_start_is_one_sentence(project):
    environment = {key: value for key, value in project.environment.items() if key != "PREFECT_API_URL"}
    homeless = Repository(project.root, {**environment, "PREFECT_HOME": "/dev/null/prefect"})
    out = homeless.graft("retrain", "--force", code=1)
    assert "graft: no Prefect server came up for this run" in out
    assert "Traceback" not in out
