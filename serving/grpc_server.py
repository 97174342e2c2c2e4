"""The Open Inference Protocol over gRPC: the service that `tritonclient[grpc]` and KServe's client speak to.

The same models, queue, limits, keys, log and counts as over HTTP, in the same event loop.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from graft.errors import GraftError, InputError
from graft.inference import Probabilities
from serving.access import AccessLog
from serving.context import Context
from serving.documents import Documents
from serving.entry import Keys, RequestIds
from serving.errors import BadRequest, RequestError
from serving.grpc_messages import PACKAGE, make_messages
from serving.grpc_tensors import read_request, write_response
from serving.infer import infer
from serving.protocol import InferRequest
from serving.repository import Version
from serving.settings import MAX_HEAD_BYTES, Security, Settings

logger = logging.getLogger(__name__)

Message = Any
Method = Callable[[Message], Awaitable[Message]]

_SERVICE = f"/{PACKAGE}.GRPCInferenceService/"
_OPEN = ("ServerLive", "ServerReady")

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    503: grpc.StatusCode.UNAVAILABLE,
}


class GrpcServer:
    """A gRPC server on a port of its own; bound at once, answering between `start` and `stop`."""

    def __init__(self, context: Context, access_log: AccessLog) -> None:
        """Bind the port.

        Raises:
            InputError: it cannot be had.
        """
        settings = context.settings
        self._grace = settings.shutdown_seconds
        self._server = grpc.aio.server(
            handlers=[_Handlers(context, access_log)],
            options=_options(settings),
            maximum_concurrent_rpcs=settings.limits.max_connections,
        )
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            port = _bind(self._server, f"{host}:{settings.grpc_port}", settings.security)
        except RuntimeError as error:  # gRPC tells no reason
            raise InputError(
                f"{host} port {settings.grpc_port} cannot be served (is it taken?); try another --grpc-port"
            ) from error
        self.address = f"{host}:{port}"

    async def start(self) -> None:
        """Answer from now on."""
        await self._server.start()

    async def stop(self) -> None:
        """Take no new calls; those under way have the server's time for its end."""
        await self._server.stop(self._grace)


def _options(settings: Settings) -> list[tuple[str, int]]:
    limits = settings.limits
    patience_ms = round(limits.patience * 1000)
    return [
        ("grpc.max_receive_message_length", limits.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", MAX_HEAD_BYTES),
        ("grpc.server_handshake_timeout_ms", patience_ms),
        # A connection whose other end is gone is found out and closed.
        ("grpc.keepalive_time_ms", patience_ms),
        ("grpc.keepalive_timeout_ms", patience_ms),
        # Two servers on one port would share its requests unseen.
        ("grpc.so_reuseport", 0),
    ]


def _bind(server: grpc.aio.Server, address: str, security: Security) -> int:
    if security.tls_certificate is None or security.tls_key is None:
        return int(server.add_insecure_port(address))
    pair = (security.tls_key.read_bytes(), security.tls_certificate.read_bytes())
    return int(server.add_secure_port(address, grpc.ssl_server_credentials([pair])))


class _Handlers(grpc.GenericRpcHandler):
    """What each call of the service is answered with, and what all calls share."""

    def __init__(self, context: Context, access_log: AccessLog) -> None:
        self._context, self._log = context, access_log
        self._keys = Keys(context.settings.security.api_keys)
        self._ids = RequestIds()
        service = _Service(context, make_messages())
        self._handlers = {
            name: grpc.stream_unary_rpc_method_handler(functools.partial(self._answer, name, request, method))
            for name, (request, method) in service.methods().items()
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a call; calls of other services get none, which gRPC answers itself."""
        path = handler_call_details.method
        if not path.startswith(_SERVICE):
            return None
        name = path.removeprefix(_SERVICE)
        return self._handlers.get(name) or grpc.stream_stream_rpc_method_handler(functools.partial(_not_offered, name))

    async def _answer(
        self, name: str, request: type[Message], method: Method, _: AsyncIterator[bytes], rpc: grpc.aio.ServicerContext
    ) -> bytes:
        """Answer one call. It is read here and not before, so that the server's patience holds for it too."""
        started = time.perf_counter()
        headers = {key: value for key, value in rpc.invocation_metadata() or () if isinstance(value, str)}
        request_id = self._ids.take(headers.get("x-request-id", "").encode())
        code = grpc.StatusCode.CANCELLED
        trailing = [("x-request-id", request_id.decode())]
        try:
            if name not in _OPEN:
                self._keys.check(headers.get("x-api-key", "").encode(), headers.get("authorization", "").encode())
            message = await self._read(request, rpc)
            answer: bytes = (await method(message)).SerializeToString()
            code = grpc.StatusCode.OK
            rpc.set_trailing_metadata(trailing)
            return answer
        except Exception as error:
            code, text, further = _explain(error, request_id)
        finally:
            self._note(name, rpc, request_id, code, time.perf_counter() - started)
        await rpc.abort(code, text, (*trailing, *further.items()))
        raise AssertionError  # for the type checker: abort never returns

    async def _read(self, request: type[Message], rpc: grpc.aio.ServicerContext) -> Message:
        patience = self._context.settings.limits.patience
        try:
            async with asyncio.timeout(patience):
                data = await rpc.read()
        except TimeoutError:
            raise RequestError(408, f"the message did not arrive within {patience:g} s") from None
        if not isinstance(data, bytes):
            raise BadRequest("the call ended without a message")
        try:
            return request.FromString(data)
        except DecodeError:
            raise BadRequest(f"the message is no {request.__name__}") from None

    def _note(
        self, name: str, rpc: grpc.aio.ServicerContext, request_id: bytes, code: grpc.StatusCode, seconds: float
    ) -> None:
        self._context.grpc.add(name, code.name, seconds)
        self._log.add(
            id=request_id.decode(),
            client=_host(rpc.peer()),
            method="gRPC",
            path=f"{_SERVICE}{name}",
            status=code.name,
            ms=round(seconds * 1000, 3),
        )


async def _not_offered(name: str, _: AsyncIterator[bytes], rpc: grpc.aio.ServicerContext) -> None:
    message = f"{name[:64]} is not offered; ModelInfer answers single requests"
    await rpc.abort(grpc.StatusCode.UNIMPLEMENTED, message)


def _host(peer: str) -> str:
    """The address in gRPC's `ipv4:127.0.0.1:4711` or `ipv6:%5B::1%5D:4711`."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def _explain(error: Exception, request_id: bytes) -> tuple[grpc.StatusCode, str, Mapping[str, str]]:
    if isinstance(error, RequestError):
        further = {key: value for key, value in error.headers.items() if key == "retry-after"}
        return _CODES.get(error.status, grpc.StatusCode.FAILED_PRECONDITION), error.message, further
    logger.error("request %s failed", request_id.decode(), exc_info=error)
    text = str(error) if isinstance(error, GraftError) else "the server failed; its log says why"
    return grpc.StatusCode.INTERNAL, text, {}


class _Service:
    """The methods: a message in, a message out."""

    def __init__(self, context: Context, messages: Mapping[str, type[Message]]) -> None:
        self._context, self._messages = context, messages
        self._documents = Documents(context)

    def methods(self) -> dict[str, tuple[type[Message], Method]]:
        """The request's class and the method, by the name that calls use."""
        methods: dict[str, Method] = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ServerMetadata": self.server_metadata,
            "ModelReady": self.model_ready,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "ModelInfer": self.model_infer,
            "RepositoryIndex": self.repository_index,
            "RepositoryModelLoad": self.repository_model_load,
            "RepositoryModelUnload": self.repository_model_unload,
        }
        return {name: (self._messages[f"{name}Request"], method) for name, method in methods.items()}

    async def server_live(self, _: Message) -> Message:
        return self._make("ServerLiveResponse", {"live": True})

    async def server_ready(self, _: Message) -> Message:
        return self._make("ServerReadyResponse", {"ready": self._documents.server_ready()})

    async def server_metadata(self, _: Message) -> Message:
        return self._make("ServerMetadataResponse", self._documents.server())

    async def model_ready(self, request: Message) -> Message:
        return self._make("ModelReadyResponse", {"ready": self._documents.model_ready(*_named(request))})

    async def model_metadata(self, request: Message) -> Message:
        document = self._documents.metadata(*_named(request))
        return self._make("ModelMetadataResponse", {**document, "properties": document["parameters"]})

    async def model_config(self, request: Message) -> Message:
        return self._make("ModelConfigResponse", {"config": self._documents.config(*_named(request))})

    async def model_statistics(self, request: Message) -> Message:
        name, version = _named(request)
        return self._make("ModelStatisticsResponse", self._documents.statistics(name or None, version))

    async def model_infer(self, request: Message) -> Message:
        started = time.perf_counter_ns()
        version = request.model_version or None
        read = functools.partial(read_request, request)
        return await infer(self._context, request.model_name, version, started, read, self._write)

    def _write(self, request: InferRequest, probabilities: Probabilities, version: Version) -> Message:
        return write_response(self._messages["ModelInferResponse"](), request, probabilities, version)

    async def repository_index(self, request: Message) -> Message:
        return self._make("RepositoryIndexResponse", {"models": self._documents.index(request.ready)})

    async def repository_model_load(self, request: Message) -> Message:
        name = _controlled(request)
        await self._documents.load(name, dict(request.parameters))
        return self._make("RepositoryModelLoadResponse", {"model_name": name, "isLoaded": True})

    async def repository_model_unload(self, request: Message) -> Message:
        name = _controlled(request)
        await self._documents.unload(name)
        return self._make("RepositoryModelUnloadResponse", {"model_name": name, "isUnloaded": True})

    def _make(self, message: str, document: dict[str, Any]) -> Message:
        """The document as a message, less what only HTTP tells."""
        return ParseDict(document, self._messages[message](), ignore_unknown_fields=True)


def _named(request: Message) -> tuple[str, str | None]:
    return request.name, request.version or None


def _controlled(request: Message) -> str:
    """The model to load or unload; KServe's client writes its name where Triton's writes the repository's."""
    name: str = request.model_name or request.repository_name
    return name
