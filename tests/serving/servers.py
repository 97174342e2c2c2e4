"""A real server in a process of its own, started as a person starts it, for tests and nothing else."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from samples import infer_body

ROOT = Path(__file__).parents[2]
START_SECONDS = 240


@dataclass
class Server:
    """A running `graft serve`."""

    process: subprocess.Popen[str]
    url: str = ""
    grpc: str = ""  # host and port, with --grpc-port
    log: list[str] = field(default_factory=list)
    access: list[str] = field(default_factory=list)
    announced: threading.Event = field(default_factory=threading.Event)

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 0

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | str | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = 60,
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON (or text) and headers of one request on a connection of its own."""
        connection = http.client.HTTPConnection(*self.address, timeout=timeout)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            data = response.read()
            found = {key.lower(): value for key, value in response.getheaders()}
            is_json = found.get("content-type") == "application/json"
            return response.status, json.loads(data) if is_json else data.decode(errors="replace"), found
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """The JSON answered to a GET that must succeed."""
        status, document, _ = self.ask("GET", path)
        assert status == 200, document
        return document

    def pending(self) -> float:
        """Requests in the queue, of all models."""
        text = self.ask("GET", "/metrics")[1]
        lines = [line for line in text.splitlines() if line.startswith("nv_inference_pending_request_count{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait for its end."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def serving(*arguments: str | Path, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """`graft serve` with `arguments` on a free port, ready, and stopped in the end."""
    command = [sys.executable, "-m", "graft.cli", "serve", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    server = Server(process)
    readers = [
        threading.Thread(target=_read, args=(process.stderr, server.log, server)),
        threading.Thread(target=_read, args=(process.stdout, server.access, server)),
    ]
    for reader in readers:
        reader.start()
    try:
        assert server.announced.wait(START_SECONDS), "\n".join(server.log)
        assert server.url, "\n".join(server.log)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for reader in readers:
            reader.join()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def _read(stream: Any, lines: list[str], server: Server) -> None:
    for line in stream:
        lines.append(line.rstrip())
        if line.startswith("  page "):
            server.url = line.split()[1].rstrip("/")
        if line.startswith("  gRPC "):
            server.grpc = line.split()[1]
        if line.startswith("  documents "):
            server.announced.set()
    server.announced.set()


class Load:
    """Clients that ask without a pause, each on one connection, until the block ends."""

    def __init__(self, server: Server, path: str) -> None:
        self.server, self.path = server, path
        self.answers: list[tuple[int, bytes, str]] = []
        self.failures: list[BaseException] = []
        self.seen = threading.Condition()
        self._stop = threading.Event()

    def wait_for(self, number: int) -> None:
        """Until so many more answers came."""
        with self.seen:
            wanted = len(self.answers) + number
            assert self.seen.wait_for(lambda: len(self.answers) >= wanted or bool(self.failures), timeout=60)

    def stop(self) -> None:
        self._stop.set()

    def run(self) -> None:
        connection = http.client.HTTPConnection(*self.server.address, timeout=60)
        try:
            while not self._stop.is_set():
                self._ask(connection)
        except ConnectionRefusedError:
            pass  # the listener is closed: nothing was lost
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(error)
        finally:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> None:
        connection.request("POST", self.path, *infer_body())
        response = connection.getresponse()
        data = response.read()
        with self.seen:
            self.answers.append((response.status, data, response.getheader("connection", "")))
            self.seen.notify_all()


@contextmanager
def load(server: Server, path: str = "/v2/models/colours/infer", clients: int = 4) -> Iterator[Load]:
    running = Load(server, path)
    threads = [threading.Thread(target=running.run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield running
    finally:
        running.stop()
        for thread in threads:
            thread.join()
