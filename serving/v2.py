"""The endpoints of the Open Inference Protocol v2, as Triton and KServe offer them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Send

from graft.inference import Probabilities
from serving.bodies import read_body
from serving.context import Context
from serving.documents import Documents
from serving.errors import BadRequest
from serving.infer import infer as answer_infer
from serving.protocol import (
    BINARY,
    HEADER_LENGTH,
    JSON,
    InferRequest,
    dump_json,
    encode_infer,
    parse_infer,
    parse_json,
)
from serving.repository import Version

_HEADER_LENGTH = HEADER_LENGTH.encode()

Endpoint = Callable[[Request], Awaitable[Response]]


def answer(document: object, status: int = 200) -> Response:
    """A JSON answer, of exactly the content type KServe's client wants."""
    return Response(dump_json(document), status, media_type=JSON)


def infer_path(path: str) -> tuple[str, str | None] | None:
    """Model and version of an infer request's path; None when it is another path."""
    parts = path.split("/")
    if parts[1:3] != ["v2", "models"] or parts[-1] != "infer":
        return None
    if len(parts) == 5:
        return parts[3], None
    if len(parts) == 7 and parts[4] == "versions":
        return parts[3], parts[5]
    return None


async def infer(
    context: Context,
    target: tuple[str, str | None],
    headers: Mapping[bytes, bytes],
    receive: Receive,
    send: Send,
) -> None:
    """Answer one infer request: the path that load takes, so it goes round the router."""
    started = time.perf_counter_ns()
    context.repository.get(*target)  # unknown models are refused before their body is read
    body = await read_body(headers, receive, context.settings.limits)

    def read(version: Version) -> InferRequest:
        size, most = version.model.image_size, version.batcher.max_batch_size
        return parse_infer(body, headers.get(_HEADER_LENGTH), size, most)

    data, json_length = await answer_infer(context, *target, started, read, _write)
    head = [(b"content-length", str(len(data)).encode())]
    if json_length is None:
        head.append((b"content-type", JSON.encode()))
    else:
        head += [(b"content-type", BINARY.encode()), (_HEADER_LENGTH, str(json_length).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": data})


def _write(request: InferRequest, probabilities: Probabilities, version: Version) -> tuple[bytes, int | None]:
    return encode_infer(request, probabilities, version.name, version.version, version.model.classes)


def routes(context: Context) -> list[Route]:
    """All endpoints but infer."""
    endpoints = _Endpoints(context)
    models = "/v2/models/{model}"
    table: list[tuple[str, str, Endpoint]] = [
        ("GET", "/v2", endpoints.server),
        ("GET", "/v2/health/live", endpoints.live),
        ("GET", "/v2/health/ready", endpoints.ready),
        ("GET", "/v2/models/stats", endpoints.all_statistics),
        ("POST", "/v2/repository/index", endpoints.index),
        ("POST", "/v2/repository/models/{model}/load", endpoints.load),
        ("POST", "/v2/repository/models/{model}/unload", endpoints.unload),
    ]
    for prefix in (models, f"{models}/versions/{{version}}"):
        table += [
            ("GET", prefix, endpoints.metadata),
            ("GET", f"{prefix}/ready", endpoints.model_ready),
            ("GET", f"{prefix}/config", endpoints.config),
            ("GET", f"{prefix}/stats", endpoints.statistics),
        ]
    return [Route(path, endpoint, methods=[method]) for method, path, endpoint in table]


class _Endpoints:
    def __init__(self, context: Context) -> None:
        self._documents = Documents(context)
        self._limits = context.settings.limits

    async def server(self, request: Request) -> Response:
        return answer(self._documents.server())

    async def live(self, request: Request) -> Response:
        return answer({"live": True})

    async def ready(self, request: Request) -> Response:
        # KServe's client reads both keys from this one reply.
        ready = self._documents.server_ready()
        return answer({"live": True, "ready": ready}, 200 if ready else 503)

    async def model_ready(self, request: Request) -> Response:
        name, version = _named(request)
        ready = self._documents.model_ready(name, version)
        return answer({"name": name, "ready": ready}, 200 if ready else 503)

    async def metadata(self, request: Request) -> Response:
        return answer(self._documents.metadata(*_named(request)))

    async def config(self, request: Request) -> Response:
        return answer(self._documents.config(*_named(request)))

    async def statistics(self, request: Request) -> Response:
        return answer(self._documents.statistics(*_named(request)))

    async def all_statistics(self, request: Request) -> Response:
        return answer(self._documents.statistics(None, None))

    async def index(self, request: Request) -> Response:
        ready_only = (await self._document(request)).get("ready", False)
        if not isinstance(ready_only, bool):
            raise BadRequest("ready must be true or false")
        return answer(self._documents.index(ready_only))

    async def load(self, request: Request) -> Response:
        parameters = (await self._document(request)).get("parameters")
        return answer({"changed": await self._documents.load(request.path_params["model"], parameters)})

    async def unload(self, request: Request) -> Response:
        await self._document(request)
        await self._documents.unload(request.path_params["model"])
        return answer({})

    async def _document(self, request: Request) -> dict[str, Any]:
        body = await read_body(dict(request.headers.raw), request.receive, self._limits)
        return parse_json(body) if body.strip() else {}


def _named(request: Request) -> tuple[str, str | None]:
    """Model and version of the path."""
    return request.path_params["model"], request.path_params.get("version")
