"""The endpoints for people: uploaded pictures in, labels or a heat map out.

A request brings its pictures as a form (`multipart/form-data`), as JSON with base64, or as the bare bytes of
one picture. They are decoded and scaled by the code that prepared the training images.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from graft.images import UnreadableImage, decode, resize
from graft.inference import Images, Probabilities
from serving import occlusion
from serving.bodies import read_body
from serving.context import Context
from serving.errors import BadRequest, RequestError
from serving.protocol import parse_json
from serving.repository import Version
from serving.settings import Limits
from serving.v2 import answer

_FORM, _JSON = "multipart/form-data", "application/json"
DEFAULT_TOP_K = 5
MOST_TOP_K = 999_999


class Options(BaseModel):
    """What is wanted of the pictures; forms and queries bring it as text, JSON with its own types."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    top_k: Annotated[int, Field(ge=1, le=MOST_TOP_K)] = DEFAULT_TOP_K
    model: str = ""
    version: str = ""
    label: str = ""

    @classmethod
    def read(cls, texts: Mapping[str, str], document: Mapping[str, Any] | None = None) -> Options:
        """From texts, which a JSON document overrides.

        Raises:
            BadRequest: a value is of the wrong type or out of range.
        """
        given: dict[str, Any] = dict(texts)
        if given.get("top_k", "").isdecimal():
            given["top_k"] = int(given["top_k"][:9])
        try:
            return cls.model_validate({**given, **(document or {})})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise BadRequest(f"{first['loc'][0]}: {first['msg']}") from None


@dataclass(frozen=True)
class Upload:
    """The pictures of one request, still encoded, and what is wanted of them."""

    names: list[str]
    pictures: list[bytes]
    options: Options


def routes(context: Context) -> list[Route]:
    """The endpoints under /v1."""
    endpoints = _Endpoints(context)
    return [
        Route("/v1/models", endpoints.models, methods=["GET"]),
        Route("/v1/classify", endpoints.classify, methods=["POST"]),
        Route("/v1/explain", endpoints.explain, methods=["POST"]),
    ]


class _Endpoints:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def models(self, request: Request) -> Response:
        return answer({"models": [describe(version) for version in self._context.repository.versions()]})

    async def classify(self, request: Request) -> Response:
        upload = await read_upload(request, self._context.settings.limits)
        with self._lease(upload) as version:
            probabilities = await _predict(version, await self._decode(upload, version))
            results = [
                {"name": name, "predictions": best(row, version.model.classes, upload.options.top_k)}
                for name, row in zip(upload.names, probabilities, strict=True)
            ]
            return answer({"model": version.name, "version": version.version, "results": results})

    async def explain(self, request: Request) -> Response:
        upload = await read_upload(request, self._context.settings.limits)
        if len(upload.pictures) != 1:
            raise BadRequest(f"a heat map is made of one picture. Received: {len(upload.pictures)}")
        with self._lease(upload) as version:
            classes = version.model.classes
            label = upload.options.label
            if label and label not in classes:
                raise BadRequest("label must be one of the model's classes, see /v1/models")
            images = await self._decode(upload, version)
            heat = await occlusion.explain(version, images[0], classes.index(label) if label else None)
            return answer(
                {
                    "model": version.name,
                    "version": version.version,
                    "method": "occlusion",
                    "label": classes[heat.label],
                    "probability": heat.probability,
                    "runs": heat.runs,
                    "heat": heat.values.round(4).tolist(),
                }
            )

    def _lease(self, upload: Upload) -> AbstractContextManager[Version]:
        options = upload.options
        return self._context.repository.get(options.model or None, options.version or None).lease()

    async def _decode(self, upload: Upload, version: Version) -> Images:
        """All pictures of the request as N×H×W×3, on the threads that decode."""
        loop = asyncio.get_running_loop()
        prepare = functools.partial(
            _prepare, size=version.model.image_size[0], max_pixels=self._context.settings.limits.max_pixels
        )
        pending = [loop.run_in_executor(self._context.decoders, prepare, picture) for picture in upload.pictures]
        outcomes = await asyncio.gather(*pending, return_exceptions=True)
        images = []
        for name, outcome in zip(upload.names, outcomes, strict=True):
            if isinstance(outcome, UnreadableImage):
                raise BadRequest(f"{name}: {outcome}")
            if isinstance(outcome, BaseException):
                raise outcome
            images.append(outcome)
        return np.stack(images)


async def _predict(version: Version, images: Images) -> Probabilities:
    started = time.perf_counter_ns()
    step = version.batcher.max_batch_size
    parts = [images[start : start + step] for start in range(0, len(images), step)]
    answers = await asyncio.gather(*map(version.batcher.submit, parts))
    for part in answers:
        version.statistics.add_success(time.perf_counter_ns() - started, 0, part.batch)
    return np.concatenate([part.probabilities for part in answers])


def _prepare(picture: bytes, size: int, max_pixels: int) -> Images:
    return resize(decode(picture, max_pixels), size)


def best(row: Probabilities, classes: list[str], top_k: int) -> list[dict[str, Any]]:
    """The `top_k` most probable labels of one picture, best first."""
    order = np.argsort(-row, kind="stable")[:top_k]
    return [{"label": classes[index], "index": int(index), "probability": float(row[index])} for index in order]


def describe(version: Version) -> dict[str, Any]:
    """What people want to know of a version before they trust it."""
    model = version.model
    metadata = model.metadata
    return {
        "name": version.name,
        "version": version.version,
        "provider": model.provider,
        "precision": metadata["precision"],
        "classes": model.classes,
        "image_size": list(model.image_size),
        "metrics": metadata.get("metrics", {}),
        "written": version.written,
        "provenance": metadata.get("provenance", {}),
    }


async def read_upload(request: Request, limits: Limits) -> Upload:
    """The pictures of a request, in whichever of the three forms they come.

    Raises:
        RequestError: 400 or 415, it brings none, too many, or something else.
    """
    headers = dict(request.headers.raw)
    body = await read_body(headers, request.receive, limits)
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    query = dict(request.query_params)
    if kind == _FORM:
        upload = await _read_form(request.headers, body, limits, query)
    elif kind == _JSON:
        upload = _read_document(parse_json(body), query)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        upload = Upload(["picture 1"], [body], Options.read(query))
    else:
        raise RequestError(415, f"send {_FORM}, {_JSON} or the bytes of one picture as image/…")
    if not upload.pictures:
        raise BadRequest("there is no picture in the request")
    if len(upload.pictures) > limits.max_pictures:
        raise BadRequest(f"at most {limits.max_pictures} pictures in one request")
    return upload


async def _read_form(headers: Headers, body: bytes, limits: Limits, query: dict[str, str]) -> Upload:
    form = await _parse_form(headers, body, limits)
    names: list[str] = []
    pictures: list[bytes] = []
    try:
        for key, value in form.multi_items():
            if isinstance(value, UploadFile):
                names.append(_name(value.filename, len(names)))
                pictures.append(await value.read())
            else:
                query[key] = value
    finally:
        await form.close()
    return Upload(names, pictures, Options.read(query))


async def _parse_form(headers: Headers, body: bytes, limits: Limits) -> FormData:
    async def stream() -> Any:
        yield body

    parser = MultiPartParser(headers, stream(), max_files=limits.max_pictures, max_fields=16)
    # The body is in memory and bounded already; a copy on disk would only cost time.
    parser.spool_max_size = limits.max_body_bytes
    try:
        return await parser.parse()
    except (MultiPartException, MultipartParseError) as error:
        raise BadRequest(f"the form cannot be read ({error})") from None
    except (KeyError, UnicodeError, LookupError):
        raise BadRequest("the form cannot be read (its head is broken)") from None


def _read_document(document: dict[str, Any], query: dict[str, str]) -> Upload:
    known = ("images", *Options.model_fields)
    unknown = sorted(set(document).difference(known))
    if unknown:
        raise BadRequest(f"unknown key {unknown[0][:40]!r}; known: {', '.join(known)}")
    images = document.pop("images", None)
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise BadRequest("images must be a list of pictures in base64")
    pictures = []
    for number, image in enumerate(images, 1):
        try:
            pictures.append(base64.b64decode(image.partition("base64,")[2] or image, validate=True))
        except (binascii.Error, ValueError):
            raise BadRequest(f"picture {number} is no base64") from None
    names = [f"picture {number + 1}" for number in range(len(pictures))]
    return Upload(names, pictures, Options.read(query, document))


def _name(filename: str | None, position: int) -> str:
    """A name to show; it is never opened."""
    return (filename or f"picture {position + 1}")[:120]
