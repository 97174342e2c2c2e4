"""The OpenAPI document of this server, at `/openapi.json`: what `/docs` shows and fuzzers read."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import graft
from graft.inference import INPUT, OUTPUT
from serving.context import Context
from serving.pictures import DEFAULT_TOP_K, MOST_TOP_K
from serving.v2 import answer

Json = dict[str, Any]

_ERROR: Json = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
# A picture of one grey pixel, so that examples can be tried as they stand.
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
_MEANINGS = {
    400: "The request is wrong; the sentence says what and how to mend it",
    401: "An API key is wanted",
    403: "Not allowed from there",
    404: "There is no such model or version",
    405: "Another method is wanted",
    408: "The body did not arrive in time",
    413: "The body is too long",
    415: "A content type or encoding this server does not read",
    503: "Not ready, or too many requests wait; come back after Retry-After",
}


def routes(context: Context) -> list[Route]:
    """The document's route."""

    async def document(_: Request) -> Response:
        return answer(describe(context))

    return [Route("/openapi.json", document, methods=["GET"])]


def describe(context: Context) -> Json:
    """The OpenAPI 3.1 document for the models served now."""
    names = context.repository.names
    versions = sorted({version.version for version in context.repository.versions()})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Graft",
            "version": graft.__version__,
            "description": "Pictures in, labels out: for people under /v1, "
            "for clients of the Open Inference Protocol under /v2.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": "People"}, {"name": "Open Inference Protocol"}, {"name": "Operation"}],
        "paths": {**_people(), **_protocol(names, versions), **_operation()},
        "components": {
            "schemas": {
                "Error": _ERROR,
                "Prediction": _record(
                    label={"type": "string"},
                    index={"type": "integer", "minimum": 0},
                    probability={"type": "number", "minimum": 0, "maximum": 1},
                ),
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        **({"security": [{"key": []}]} if context.settings.security.api_keys else {}),
    }


def _people() -> Json:
    predictions = {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}}
    results = _record(
        model={"type": "string"},
        version={"type": "string"},
        results={"type": "array", "items": _record(name={"type": "string"}, predictions=predictions)},
    )
    heat = _record(
        model={"type": "string"},
        version={"type": "string"},
        method={"const": "occlusion"},
        label={"type": "string"},
        probability={"type": "number"},
        runs={"type": "integer"},
        heat={"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
    )
    top_k = _query("top_k", {"type": "integer", "minimum": 1, "maximum": MOST_TOP_K, "default": DEFAULT_TOP_K})
    label = _query("label", {"type": "string"})
    return {
        "/v1/models": _path("get", "The models served", "People", _record(models={"type": "array"})),
        "/v1/classify": _path(
            "post",
            "Labels and probabilities of one or many pictures",
            "People",
            results,
            _pictures(),
            [top_k],
        ),
        "/v1/explain": _path("post", "A heat map of what the model looked at", "People", heat, _pictures(), [label]),
    }


def _protocol(names: list[str], versions: list[str]) -> Json:
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": names}}
    version = model | {"name": "version", "schema": {"type": "string", "enum": versions}}
    tag = "Open Inference Protocol"
    anything = {"type": "object"}
    paths = {
        "/v2": _path("get", "The server and its extensions", tag, anything),
        "/v2/health/live": _path("get", "Whether the server runs", tag, anything),
        "/v2/health/ready": _path("get", "Whether requests should be sent here", tag, anything),
        "/v2/models/stats": _path("get", "Statistics of all models", tag, anything),
        "/v2/repository/index": _path(
            "post", "The models that can be served", tag, {"type": "array"}, _json(_index_request())
        ),
        "/v2/repository/models/{model}/load": _path(
            "post", "Load, or swap to what the source holds now", tag, anything, _json(anything), [model]
        ),
        "/v2/repository/models/{model}/unload": _path(
            "post", "Serve a model no more", tag, anything, _json(anything), [model]
        ),
    }
    for prefix, parameters in (
        ("/v2/models/{model}", [model]),
        ("/v2/models/{model}/versions/{version}", [model, version]),
    ):
        paths |= {
            prefix: _path("get", "Inputs and outputs", tag, anything, None, parameters),
            f"{prefix}/ready": _path("get", "Whether it can answer", tag, anything, None, parameters),
            f"{prefix}/config": _path("get", "How it is run", tag, anything, None, parameters),
            f"{prefix}/stats": _path("get", "Counts and durations", tag, anything, None, parameters),
            f"{prefix}/infer": _path(
                "post",
                "Probabilities for pixels",
                tag,
                anything,
                _json(_infer_request(), required=True),
                parameters,
            ),
        }
    return paths


def _operation() -> Json:
    metrics = _path("get", "Metrics for Prometheus", "Operation", {"type": "string"})
    metrics["get"]["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return {"/metrics": metrics}


def _pictures() -> Json:
    options: Json = {
        "top_k": {"type": "integer", "minimum": 1, "maximum": MOST_TOP_K},
        "model": {"type": "string"},
        "version": {"type": "string"},
        "label": {"type": "string"},
    }
    picture = {"type": "string", "contentMediaType": "application/octet-stream"}
    images = {"type": "array", "minItems": 1, "items": {"type": "string", "contentEncoding": "base64"}}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "array", "minItems": 1, "items": picture}, **options},
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "additionalProperties": False,
                    "properties": {"images": images, **options},
                },
                "example": {"images": [_PIXEL], "top_k": 3},
            },
            "image/*": {"schema": picture},
        },
    }


def _index_request() -> Json:
    return {"type": "object", "properties": {"ready": {"type": "boolean"}}}


def _infer_request() -> Json:
    tensor = _record(
        name={"const": INPUT},
        datatype={"const": "UINT8"},
        shape={"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 4, "maxItems": 4},
        data={"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}},
    )
    output = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"const": OUTPUT},
            "parameters": {
                "type": "object",
                "properties": {"classification": {"type": "integer"}, "binary_data": {"type": "boolean"}},
            },
        },
    }
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "items": tensor, "minItems": 1, "maxItems": 1},
            "outputs": {"type": "array", "items": output, "maxItems": 1},
        },
    }


def _record(**properties: Json) -> Json:
    return {"type": "object", "required": list(properties), "properties": properties}


def _query(name: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _json(schema: Json, required: bool = False) -> Json:
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def _path(
    method: str,
    summary: str,
    tag: str,
    result: Json,
    body: Json | None = None,
    parameters: list[Json] | None = None,
) -> Json:
    responses: Json = {
        "200": {"description": "Done", "content": {"application/json": {"schema": result}}},
        **{
            str(status): {
                "description": meaning,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            }
            for status, meaning in _MEANINGS.items()
        },
    }
    operation: Json = {"summary": summary, "tags": [tag], "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = body
    return {method: operation}
