"""Running the application: the socket, TLS, the signals, and a protocol that slow clients cannot hold."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from graft.errors import InputError
from serving.access import AccessLog, log_as_json
from serving.app import build
from serving.context import Context
from serving.protocol import dump_json
from serving.repository import Repository, Source
from serving.settings import MAX_HEAD_BYTES, Settings

if TYPE_CHECKING:
    from serving.grpc_server import GrpcServer

# Told the models, the HTTP server's URL, and the gRPC server's host and port where there is one.
Announce = Callable[[Repository, str, str | None], None]

_HEAD_TOO_LONG = f"the request's head is longer than {MAX_HEAD_BYTES} bytes"

# After the listener is closed, for a connection that has not asked anything yet.
_FIRST_REQUEST_SECONDS = 0.5

# How long a handshake may take whose first segment came before the end: a way around the earth.
_HANDSHAKE_SECONDS = 0.3

# A packet filter (linux/filter.h) that sees a segment from its TCP header on and drops it where the flag SYN is set.
_SO_ATTACH_FILTER = 26
_INSTRUCTION = "HBBI"  # what to do, steps to go if so and if not, an operand
_DROP_SYN = b"".join(
    struct.pack(_INSTRUCTION, *step)
    for step in (
        (0x30, 0, 0, 13),  # load the byte of the flags
        (0x45, 0, 1, 0x02),  # is SYN among them?
        (0x06, 0, 0, 0),  # then keep nothing of the segment
        (0x06, 0, 0, 0xFFFFFFFF),  # else all
    )
)

# How long a thread may keep the interpreter from the others. Python's own 5 ms is as long as a small run.
SWITCH_SECONDS = 0.0005


def serve(sources: Iterable[Source], settings: Settings, announce: Announce | None = None) -> None:
    """Serve until SIGTERM or SIGINT; `announce` is told the models and the addresses once all is ready.

    Raises:
        GraftError: a model cannot be opened, or the address cannot be bound.
    """
    log_as_json()
    sys.setswitchinterval(SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(list(sources), settings, announce))


async def _serve(sources: list[Source], settings: Settings, announce: Announce | None) -> None:
    listener = _bind(settings.host, settings.port)
    context = Context(settings, Repository(sources, settings))
    access_log = AccessLog(sys.stdout if settings.access_log else None)
    rpc = _bind_grpc(context, access_log)
    await context.repository.start()
    server = _Server(_config(build(context, access_log), settings), context, rpc, announce)
    await server.serve([listener])


def _bind_grpc(context: Context, access_log: AccessLog) -> GrpcServer | None:
    if context.settings.grpc_port is None:
        return None
    # What goes wrong is said in a sentence of ours; gRPC's own lines on stderr are no JSON.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from serving.grpc_server import GrpcServer
    except ImportError as error:
        raise InputError(f"--grpc-port wants grpcio ({error}); pip install 'graft[serve-grpc]'") from error
    return GrpcServer(context, access_log)


def _bind(host: str, port: int) -> socket.socket:
    """The socket, bound before models are opened: a port that is taken is said at once."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise InputError(f"{host} port {port} cannot be served ({error.strerror}); try another --port") from error
    return listener


def _config(app: Any, settings: Settings) -> uvicorn.Config:
    security, limits = settings.security, settings.limits

    class BoundedProtocol(Protocol):
        """The protocol with this server's limits."""

        patience = limits.patience
        max_connections = limits.max_connections

    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=BoundedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=round(settings.shutdown_seconds),
        backlog=2048,
        ssl_certfile=security.tls_certificate,
        ssl_keyfile=security.tls_key,
    )


class _Server(uvicorn.Server):
    """Uvicorn's server, which says when it is up and lets balancers look away before it stops."""

    def __init__(
        self, config: uvicorn.Config, context: Context, rpc: GrpcServer | None, announce: Announce | None
    ) -> None:
        super().__init__(config)
        self._context, self._rpc, self._announce = context, rpc, announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; from then on the server is ready."""
        await super().startup(sockets)
        if self._rpc is not None:
            await self._rpc.start()
        self._context.started = True
        if self._announce is not None and sockets:
            host, port = sockets[0].getsockname()[:2]
            scheme = "https" if self.config.is_ssl else "http"
            url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
            self._announce(self._context.repository, url, self._rpc.address if self._rpc is not None else None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish the calls under way, then the requests, then let go of the models."""
        if self._rpc is not None:
            await self._rpc.stop()
        for listener in sockets or []:
            refuse_handshakes(listener)
        await asyncio.sleep(_HANDSHAKE_SECONDS)  # those that had begun end, and are served as any
        taken_in = [self._take_in(client) for client in _unaccepted(sockets or [])]
        asyncio.get_running_loop().call_later(_FIRST_REQUEST_SECONDS, self._end_latecomers)
        await super().shutdown(sockets)  # closes the listeners before anything else can happen
        for task in taken_in:
            task.cancel()  # only a TLS handshake that outlasts everything else
        await asyncio.gather(*taken_in, return_exceptions=True)

    def _end_latecomers(self) -> None:
        """Uvicorn has not told those who came in while it closed the listeners."""
        for connection in list(self.server_state.connections):
            connection.shutdown()

    def _take_in(self, client: socket.socket) -> asyncio.Task[Any]:
        """Serve a connection that the loop has not accepted; it would be reset with its listener."""
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.Protocol:
            return self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )

        return loop.create_task(loop.connect_accepted_socket(protocol, client, ssl=self.config.ssl))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM drains, SIGINT stops at once; both end with the requests under way answered."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._drain, self._context.settings.drain_seconds)
        loop.add_signal_handler(signal.SIGINT, self._drain, 0.0)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            loop.remove_signal_handler(signal.SIGINT)

    def _drain(self, seconds: float) -> None:
        """Not ready from now on; stop accepting `seconds` later, or at once when asked twice."""
        if self._context.draining or not seconds:
            self.should_exit = True
        self._context.draining = True
        asyncio.get_running_loop().call_later(seconds, setattr, self, "should_exit", True)


def refuse_handshakes(listener: socket.socket) -> None:
    """Have the kernel drop what would open a connection.

    A listener that closes resets those whose handshake ends between its last `accept` and its end. Whose first segment
    is dropped sends another a second later, and is refused then.
    """
    program = ctypes.create_string_buffer(_DROP_SYN)
    with suppress(OSError):  # a kernel without filters: then those microseconds stay
        length = len(_DROP_SYN) // struct.calcsize(_INSTRUCTION)
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", length, ctypes.addressof(program)))


def _unaccepted(listeners: list[socket.socket]) -> Iterator[socket.socket]:
    for listener in listeners:
        with suppress(BlockingIOError):
            while True:
                client, _ = listener.accept()
                client.setblocking(False)
                yield client


def _head_length(url: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    return len(url) + sum(len(name) + len(value) for name, value in headers)


class _Corked:
    """A transport that sends what is written in one turn of the loop at once.

    An answer's head and body are written one after the other: joined they are one system call and one wake-up.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send `data` before the loop waits again."""
        if not self._held:
            self._loop.call_soon(self._send)
        self._held.append(data)

    def close(self) -> None:
        """Send what is held, then close."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._held:
            self._transport.write(b"".join(self._held))
            self._held.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Protocol(HttpToolsProtocol):
    """Uvicorn's HTTP protocol, with bounds on slow clients and errors as JSON."""

    patience = 30.0
    max_connections = 2048

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.gone = False
        self._head_timer: asyncio.TimerHandle | None = None  # set while a head is awaited
        self._head_bytes = 0
        self._write_timer: asyncio.TimerHandle | None = None
        self._answering: set[asyncio.Task[Any]] = set()

    def enter(self, task: asyncio.Task[Any] | None) -> None:
        """Cancel this task, which answers a request, when the client leaves."""
        if task is not None:
            self._answering.add(task)

    def leave(self, task: asyncio.Task[Any] | None) -> None:
        """The task is done."""
        if task is not None:
            self._answering.discard(task)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse one connection too many; the others have until the timer to send a request."""
        super().connection_made(_Corked(transport, self.loop))  # type: ignore[arg-type]
        if len(self.connections) > self.max_connections:
            self._answer(503, "too many connections", "retry-after: 1\r\n")
            return
        self._head_timer = self.loop.call_later(self.patience, self._head_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what the client no longer waits for."""
        self.gone = True
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        for task in self._answering:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        """Refuse a head without end; the parser itself would gather it all."""
        if self._head_timer is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_timer is not None and self._head_bytes > MAX_HEAD_BYTES:
            self._answer(431, _HEAD_TOO_LONG)

    def shutdown(self) -> None:
        """Close after the request under way; the first request of a new connection may still be on its way."""
        if self.cycle is None:
            self.loop.call_later(_FIRST_REQUEST_SECONDS, super().shutdown)  # type: ignore[unreachable]
        else:
            super().shutdown()

    def on_message_begin(self) -> None:
        """A request begins: its head must be whole soon."""
        super().on_message_begin()
        self.scope["graft.connection"] = self  # type: ignore[typeddict-unknown-key]
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.patience, self._head_too_slow)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        length, self._head_bytes = self._head_bytes, 0
        # What came in one piece may hold the body too: only then are the headers themselves measured.
        if length > MAX_HEAD_BYTES and _head_length(self.url, self.headers) > MAX_HEAD_BYTES:
            raise ValueError(_HEAD_TOO_LONG)
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """The client does not read; it has until the timer."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered like every other bad request."""
        self._answer(400, msg)

    def _head_too_slow(self) -> None:
        self._answer(408, f"the request's head did not arrive within {self.patience:g} s")

    def _answer(self, status: int, message: str, headers: str = "") -> None:
        body = dump_json({"error": message})
        head = (
            f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"{headers}connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
