"""The server as one ASGI application: the door every request comes through, then the endpoints.

The door holds what all answers share: who may enter, a request id, `{"error": …}` for whatever goes wrong,
the access log and the counts.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import time
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from graft.errors import GraftError
from serving import openapi, page, pictures, v2
from serving.access import FLUSH_SECONDS, AccessLog
from serving.context import Context
from serving.entry import Keys, RequestIds
from serving.errors import Gone, RequestError
from serving.metrics import CONTENT_TYPE, render
from serving.protocol import JSON, dump_json

logger = logging.getLogger(__name__)

# Load balancers ask for health without a key; the page and the document hold no secrets.
_OPEN = ("/", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready")
_CLIENT_CLOSED = 499


def build(context: Context, access_log: AccessLog) -> ASGIApp:
    """The application that a server runs."""

    @asynccontextmanager
    async def lifespan(_: Router) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.callback(access_log.flush)
            stack.push_async_callback(context.repository.stop)
            for job in _background(context, access_log):
                stack.callback(job.cancel)
            yield

    async def metrics(_: Request) -> Response:
        answers = {"http": context.http}
        if context.settings.grpc_port is not None:
            answers["grpc"] = context.grpc
        return Response(render(context.repository, answers), media_type=CONTENT_TYPE)

    security = context.settings.security
    routes = [
        *v2.routes(context),
        *pictures.routes(context),
        *page.routes(),
        *openapi.routes(context),
        Route("/metrics", metrics, methods=["GET"]),
    ]
    router = Router(routes, redirect_slashes=False, lifespan=lifespan)
    door: ASGIApp = _Door(router, context, access_log)
    if security.cors_origins:
        door = CORSMiddleware(door, security.cors_origins, allow_methods=("GET", "POST"), allow_headers=("*",))
    return door


def _background(context: Context, access_log: AccessLog) -> list[asyncio.Task[None]]:
    async def flush() -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            access_log.flush()

    jobs = [flush(), context.repository.record()]
    if context.settings.follow_seconds > 0:
        jobs.append(context.repository.follow())
    return [asyncio.get_running_loop().create_task(job) for job in jobs]


class Connection(Protocol):
    """What the server's protocol offers the door, under `graft.connection` of the scope."""

    gone: bool

    def enter(self, task: asyncio.Task[Any] | None) -> None:
        """Cancel this task when the client leaves."""

    def leave(self, task: asyncio.Task[Any] | None) -> None:
        """The task is done."""


class _Door:
    """What every request passes on its way in and out."""

    def __init__(self, app: ASGIApp, context: Context, access_log: AccessLog) -> None:
        self._app, self._context, self._log = app, context, access_log
        self._keys = Keys(context.settings.security.api_keys)
        self._origins = frozenset(context.settings.security.cors_origins)
        self._on_loopback = context.settings.on_loopback
        self._ids = RequestIds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = self._ids.take(headers.get(b"x-request-id", b""))
        status = 0

        async def reply(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
                if self._context.draining:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            await self._enter(scope, headers, receive, reply)
        except Gone:
            status = _CLIENT_CLOSED
        except Exception as error:
            if status:
                raise  # the answer is half sent: the connection must break
            await _refuse(reply, error, scope, request_id)
        finally:
            self._note(scope, request_id, status, time.perf_counter() - started)

    def _note(self, scope: Scope, request_id: bytes, status: int, seconds: float) -> None:
        self._context.http.add(_endpoint(scope["path"]), str(status), seconds)
        self._log.add(
            id=request_id.decode(),
            client=scope["client"][0] if scope.get("client") else None,
            method=scope["method"],
            path=scope["path"][:200],
            status=status,
            ms=round(seconds * 1000, 3),
        )

    async def _enter(self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, send: Send) -> None:
        connection: Connection | None = scope.get("graft.connection")
        if connection is None:
            await self._route(scope, headers, receive, send)
            return
        task = asyncio.current_task()
        connection.enter(task)
        try:
            await self._route(scope, headers, receive, send)
        except asyncio.CancelledError:
            if connection.gone:
                raise Gone from None
            raise
        finally:
            connection.leave(task)

    async def _route(self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, send: Send) -> None:
        self._check_host(headers)
        self._check_key(scope["path"], headers)
        target = v2.infer_path(scope["path"]) if scope["method"] == "POST" else None
        if target is None:
            scope["app"] = self  # the router raises its 404 and 405 only inside an application
            await self._app(scope, receive, send)
        else:
            await v2.infer(self._context, target, headers, receive, send)

    def _check_host(self, headers: Mapping[bytes, bytes]) -> None:
        """Keep web pages of other sites from using a browser to reach a server on loopback."""
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin not in self._origins and _authority(origin) != host:
            raise RequestError(403, "pages of other origins may not ask here; see --cors-origin")
        if self._on_loopback and host and not _names_loopback(host):
            raise RequestError(403, "this server answers for localhost only; see --host")

    def _check_key(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        if path not in _OPEN and not path.startswith(page.PREFIX):
            self._keys.check(headers.get(b"x-api-key", b""), headers.get(b"authorization", b""))


def _authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


@functools.lru_cache(maxsize=64)
def _names_loopback(host: str) -> bool:
    name = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


@functools.lru_cache(maxsize=256)
def _endpoint(path: str) -> str:
    """A label for counts: few, whatever clients ask for."""
    if path.endswith("/infer"):
        return "infer"
    first, _, rest = path.lstrip("/").partition("/")
    if first == "v1":
        return rest if rest in ("classify", "explain", "models") else "other"
    return first if first in ("v2", "metrics") else "page"


async def _refuse(send: Send, error: Exception, scope: Scope, request_id: bytes) -> None:
    status, message, further = _explain(error, scope)
    if status == 500:
        logger.error("request %s failed", request_id.decode(), exc_info=error)
    body = dump_json({"error": message})
    headers = [(b"content-type", JSON.encode()), (b"content-length", str(len(body)).encode())]
    headers += [(key.lower().encode(), value.encode()) for key, value in further.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _explain(error: Exception, scope: Scope) -> tuple[int, str, Mapping[str, str]]:
    if isinstance(error, RequestError):
        return error.status, error.message, error.headers
    if isinstance(error, HTTPException):
        path = scope["path"][:80]
        offered = f"there is no {path}" if error.status_code == 404 else f"{path} does not take {scope['method']}"
        return error.status_code, f"{offered}; see /docs", error.headers or {}
    return 500, str(error) if isinstance(error, GraftError) else "the server failed; its log says why", {}
