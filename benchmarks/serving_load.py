"""A load generator cheap enough to share two cores with the server it measures.

Closed loop: every client asks again as soon as it is answered. Open loop: requests come at their own times,
whether earlier ones are answered or not, and latency counts from the time a request was due.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import uvloop

LOST = 0  # in place of a status: the connection broke before the answer


@dataclass(frozen=True)
class Result:
    """What one run saw: answers a second, latencies in seconds, answers other than 200."""

    seconds: float
    latencies: np.ndarray
    errors: int

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """Latency in milliseconds that `share` per cent of the answers kept; NaN where there were none."""
        return float(np.percentile(self.latencies, share)) * 1000 if len(self.latencies) else math.nan


class _Client(asyncio.Protocol):
    """One connection: one request at a time."""

    def __init__(self, done: Callable[[_Client, int, float], None]) -> None:
        self._done = done
        self._buffer = b""
        self._wanted = -1
        self._asked = False
        self.due = 0.0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, request: bytes, due: float) -> None:
        self.due = due
        self._asked = True
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._wanted < 0:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end].lower()
            self._wanted = end + 4 + int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        if len(self._buffer) >= self._wanted:
            status = int(self._buffer[9:12])
            self._buffer, self._wanted, self._asked = b"", -1, False
            self._done(self, status, time.perf_counter() - self.due)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._asked:
            self._done(self, LOST, 0.0)


def http_request(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """The bytes of one POST on a connection that stays open."""
    lines = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
    return f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n{lines}\r\n".encode() + body


def closed_loop(port: int, requests: list[bytes], clients: int, warm_up: float, seconds: float) -> Result:
    """`clients` connections that ask without a pause; the first `warm_up` seconds are not counted."""
    return uvloop.run(_closed(port, requests, clients, warm_up, seconds))


def open_loop(
    port: int, requests: list[bytes], rate: float, seconds: float, seed: int = 7, even: bool = False
) -> Result:
    """Requests `rate` a second, as `arrivals` has them come; the first second is not counted."""
    return uvloop.run(_open(port, requests, arrivals(rate, seconds, seed, even), seconds))


def arrivals(rate: float, seconds: float, seed: int, even: bool) -> np.ndarray:
    """When each request is due, in seconds: evenly, or at random (Poisson); a second more than asked for."""
    rng = np.random.default_rng(seed)
    count = int(rate * (seconds + 1))
    return np.cumsum(np.full(count, 1 / rate) if even else rng.exponential(1 / rate, count))


async def _closed(port: int, requests: list[bytes], clients: int, warm_up: float, seconds: float) -> Result:
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    errors = 0
    count = 0
    start = time.perf_counter() + warm_up
    end = start + seconds
    finished = loop.create_future()
    asking = clients

    def done(client: _Client, status: int, latency: float) -> None:
        nonlocal errors, count, asking
        now = time.perf_counter()
        if start <= now < end:
            if status == 200:
                latencies.append(latency)
            else:
                errors += 1
        if now < end and status != LOST:
            count += 1
            client.ask(requests[count % len(requests)], now)
            return
        asking -= 1
        if not asking:
            finished.set_result(None)

    connected = [await loop.create_connection(lambda: _Client(done), "127.0.0.1", port) for _ in range(clients)]
    for number, (_, client) in enumerate(connected):
        client.ask(requests[number % len(requests)], time.perf_counter())
    await asyncio.wait_for(finished, seconds + 120)
    for transport, _ in connected:
        transport.abort()
    return Result(seconds, np.array(latencies), errors)


async def _open(port: int, requests: list[bytes], due: np.ndarray, seconds: float) -> Result:
    loop = asyncio.get_running_loop()
    idle: deque[_Client] = deque()
    everyone: list[Any] = []
    answers: list[tuple[float, int, float]] = []
    finished = loop.create_future()

    def done(client: _Client, status: int, latency: float) -> None:
        answers.append((client.due, status, latency))
        idle.append(client)
        if len(answers) == len(due):
            finished.set_result(None)

    async def connect(number: int) -> None:
        for _ in range(number):
            transport, client = await loop.create_connection(lambda: _Client(done), "127.0.0.1", port)
            everyone.append(transport)
            idle.append(client)

    await connect(64)
    start = time.perf_counter() + 0.1
    for number, offset in enumerate(due):
        if (pause := start + offset - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        if not idle:
            await connect(16)
        idle.popleft().ask(requests[number % len(requests)], start + offset)
    await asyncio.wait_for(finished, 120)
    for transport in everyone:
        transport.abort()
    counted = [(status, latency) for moment, status, latency in answers if moment >= start + 1]
    latencies = np.array([latency for status, latency in counted if status == 200])
    return Result(seconds, latencies, len(counted) - len(latencies))
