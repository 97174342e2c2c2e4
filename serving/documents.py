"""What the Open Inference Protocol's questions are answered with, whether they come over HTTP or gRPC.

In: the names of models and versions as clients give them. Out: JSON-like documents in the protocol's words.
"""

from __future__ import annotations

from typing import Any

import graft
from graft.errors import GraftError
from graft.inference import INPUT, OUTPUT
from serving.context import Context
from serving.errors import BadRequest, RequestError
from serving.protocol import EXTENSIONS
from serving.repository import Version

Document = dict[str, Any]

_PLATFORM = "onnxruntime_onnx"


class Documents:
    """The answers of one server. A model's name must be known, else `RequestError`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._repository = context.repository

    def server(self) -> Document:
        """The server's metadata."""
        return {"name": "graft", "version": graft.__version__, "extensions": list(EXTENSIONS)}

    def server_ready(self) -> bool:
        """Whether new requests should be sent here."""
        return self._context.ready

    def model_ready(self, name: str, version: str | None) -> bool:
        """Whether this model answers and goes on doing so."""
        self._repository.get(name, version)
        return not self._context.draining

    def metadata(self, name: str, version: str | None) -> Document:
        """The model's inputs and outputs."""
        found = self._repository.get(name, version)
        model = found.model
        return {
            "name": found.name,
            "versions": [other.version for other in self._repository.versions(found.name)],
            "platform": _PLATFORM,
            "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, *model.image_size, 3]}],
            "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, len(model.classes)]}],
            "parameters": {"provider": model.provider, "precision": model.metadata["precision"]},
        }

    def config(self, name: str, version: str | None) -> Document:
        """The model's configuration in Triton's words."""
        found = self._repository.get(name, version)
        model, batching = found.model, self._context.settings.batching
        return {
            "name": found.name,
            "platform": _PLATFORM,
            "backend": "onnxruntime",
            "max_batch_size": batching.max_batch_size,
            "input": [{"name": INPUT, "data_type": "TYPE_UINT8", "dims": [*model.image_size, 3]}],
            "output": [{"name": OUTPUT, "data_type": "TYPE_FP32", "dims": [len(model.classes)]}],
            "dynamic_batching": {"max_queue_delay_microseconds": round(batching.max_queue_delay * 1e6)},
            "instance_group": [{"count": 1, "kind": "KIND_CPU" if model.provider == "cpu" else "KIND_GPU"}],
            "parameters": {"provider": {"string_value": model.provider}},
        }

    def statistics(self, name: str | None, version: str | None) -> Document:
        """Counts and durations of one version, of all versions of a model, or of all models."""
        versions: list[Version] = self._repository.versions(name)
        if name is not None:
            chosen = self._repository.get(name, version)
            versions = versions if version is None else [chosen]
        return {"model_stats": [each.statistics.as_json(each.name, each.version) for each in versions]}

    def index(self, ready_only: bool) -> list[dict[str, str]]:
        """The models of the repository, served or not."""
        return [row for row in self._repository.index() if row["state"] == "READY" or not ready_only]

    async def load(self, name: str, parameters: object) -> bool:
        """Serve what the model's source holds now; whether that changed anything.

        Raises:
            RequestError: 403 not allowed here, 404 no such model, 400 it cannot be opened or parameters were given.
        """
        self._check_control()
        if parameters:
            raise BadRequest("a model is loaded as its source holds it; config and files are not taken from requests")
        try:
            return await self._repository.load(name)
        except GraftError as error:
            raise BadRequest(f"failed to load: {error}") from error

    async def unload(self, name: str) -> None:
        """Serve the model no more.

        Raises:
            RequestError: 403 not allowed here, 404 no such model.
        """
        self._check_control()
        await self._repository.unload(name)

    def _check_control(self) -> None:
        if not self._context.settings.control_allowed:
            raise RequestError(403, "loading and unloading by request is off; set API keys or --control")
