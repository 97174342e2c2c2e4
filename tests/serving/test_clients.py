"""The clients people already use, unmodified, from an environment of their own.

They pin an older protobuf than the pipeline's, so `make test` installs them beside it (`.venv-clients`).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from absent import absent
from servers import ROOT, Server

SCRIPTS = Path(__file__).parent / "clients"


@pytest.fixture(scope="session")
def client_python() -> Path:
    """The interpreter of the clients' environment."""
    found = Path(os.environ.get("GRAFT_CLIENTS_PYTHON", ROOT / ".venv-clients" / "bin" / "python"))
    if not found.is_file():
        absent(f"no {found.parent.parent.name}, run `make test`; real clients were not tested")
    return found


def run(python: Path, script: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [python, SCRIPTS / script, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def test_tritonclient_over_http(client_python: Path, server: Server) -> None:
    assert len(run(client_python, "triton_http.py", server.url.removeprefix("http://"), "colours")) == 8


def test_tritonclient_over_grpc(client_python: Path, server: Server) -> None:
    assert len(run(client_python, "triton_grpc.py", server.grpc, "colours")) == 9


def test_kserve_over_rest_and_grpc(client_python: Path, server: Server) -> None:
    assert len(run(client_python, "kserve_both.py", server.url, server.grpc, "colours")) == 7
