"""The endpoints of the Open Inference Protocol v2, as Triton and KServe offer them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Send

import graft
from graft.errors import GraftError
from graft.inference import INPUT, OUTPUT
from serving.bodies import read_body
from serving.context import Context
from serving.errors import BadRequest, RequestError
from serving.protocol import (
    BINARY,
    EXTENSIONS,
    HEADER_LENGTH,
    JSON,
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
    with context.repository.get(*target).lease() as version:
        model, statistics = version.model, version.statistics
        try:
            request = parse_infer(body, headers.get(_HEADER_LENGTH), model.image_size, version.batcher.max_batch_size)
        except RequestError:
            statistics.add_failure("OTHER", time.perf_counter_ns() - started)
            raise
        result = await version.batcher.submit(request.images, request.seconds)
        computed = time.perf_counter_ns()
        data, json_length = encode_infer(request, result.probabilities, version.name, version.version, model.classes)
        now = time.perf_counter_ns()
        statistics.add_success(now - started, now - computed, result.batch)
    head = [(b"content-length", str(len(data)).encode())]
    if json_length is None:
        head.append((b"content-type", JSON.encode()))
    else:
        head += [(b"content-type", BINARY.encode()), (_HEADER_LENGTH, str(json_length).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": data})


def routes(context: Context) -> list[Route]:
    """All endpoints but infer."""
    endpoints = _Endpoints(context)
    models = "/v2/models/{model}"
    table: list[tuple[str, str, Endpoint]] = [
        ("GET", "/v2", endpoints.server),
        ("GET", "/v2/health/live", endpoints.live),
        ("GET", "/v2/health/ready", endpoints.ready),
        ("GET", "/v2/models/stats", endpoints.statistics),
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
        self._context = context
        self._repository = context.repository

    def _version(self, request: Request) -> Version:
        return self._repository.get(request.path_params["model"], request.path_params.get("version"))

    async def server(self, request: Request) -> Response:
        return answer({"name": "graft", "version": graft.__version__, "extensions": EXTENSIONS})

    async def live(self, request: Request) -> Response:
        return answer({"live": True})

    async def ready(self, request: Request) -> Response:
        # KServe's client reads both keys from this one reply.
        ready = self._context.ready
        return answer({"live": True, "ready": ready}, 200 if ready else 503)

    async def model_ready(self, request: Request) -> Response:
        version = self._version(request)
        ready = not self._context.draining
        return answer({"name": version.name, "ready": ready}, 200 if ready else 503)

    async def metadata(self, request: Request) -> Response:
        version = self._version(request)
        model = version.model
        return answer(
            {
                "name": version.name,
                "versions": [other.version for other in self._repository.versions(version.name)],
                "platform": "onnxruntime_onnx",
                "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, *model.image_size, 3]}],
                "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, len(model.classes)]}],
                "parameters": {"provider": model.provider, "precision": model.metadata["precision"]},
            }
        )

    async def config(self, request: Request) -> Response:
        version = self._version(request)
        model, batching = version.model, self._context.settings.batching
        return answer(
            {
                "name": version.name,
                "platform": "onnxruntime_onnx",
                "backend": "onnxruntime",
                "max_batch_size": batching.max_batch_size,
                "input": [{"name": INPUT, "data_type": "TYPE_UINT8", "dims": [*model.image_size, 3]}],
                "output": [{"name": OUTPUT, "data_type": "TYPE_FP32", "dims": [len(model.classes)]}],
                "dynamic_batching": {"max_queue_delay_microseconds": round(batching.max_queue_delay * 1e6)},
                "instance_group": [{"count": 1, "kind": "KIND_GPU" if model.provider == "cuda" else "KIND_CPU"}],
                "parameters": {"provider": {"string_value": model.provider}},
            }
        )

    async def statistics(self, request: Request) -> Response:
        name = request.path_params.get("model")
        versions = self._repository.versions()
        if name is not None:
            chosen = self._version(request)
            only = "version" in request.path_params
            versions = [chosen] if only else self._repository.versions(name)
        return answer({"model_stats": [v.statistics.as_json(v.name, v.version) for v in versions]})

    async def index(self, request: Request) -> Response:
        ready_only = (await self._document(request)).get("ready", False)
        if not isinstance(ready_only, bool):
            raise BadRequest("ready must be true or false")
        rows = self._repository.index()
        return answer([row for row in rows if row["state"] == "READY" or not ready_only])

    async def load(self, request: Request) -> Response:
        self._check_control()
        parameters = (await self._document(request)).get("parameters") or {}
        if parameters:
            raise BadRequest("a model is loaded as its source holds it; config and files are not taken from requests")
        try:
            changed = await self._repository.load(request.path_params["model"])
        except GraftError as error:
            raise BadRequest(f"failed to load: {error}") from error
        return answer({"changed": changed})

    async def unload(self, request: Request) -> Response:
        self._check_control()
        await self._document(request)
        await self._repository.unload(request.path_params["model"])
        return answer({})

    def _check_control(self) -> None:
        if not self._context.settings.control_allowed:
            raise RequestError(403, "loading and unloading by request is off; set API keys or --control")

    async def _document(self, request: Request) -> dict[str, Any]:
        headers = dict(request.headers.raw)
        body = await read_body(headers, request.receive, self._context.settings.limits)
        return parse_json(body) if body.strip() else {}
