"""The Open Inference Protocol v2: bytes of a request to pictures, probabilities to bytes of an answer.

With Triton's binary tensor and classification extensions. Pure functions: no sockets, no models.
Specification: the KServe V2 dataplane and Triton's protocol extensions.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pydantic_core

from graft.inference import INPUT, OUTPUT, Images, Probabilities
from serving.errors import BadRequest

HEADER_LENGTH = "inference-header-content-length"
EXTENSIONS = ("binary_tensor_data", "classification", "statistics", "model_repository", "model_configuration")
JSON, BINARY = "application/json", "application/octet-stream"


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What an infer request asks for."""

    id: str | None
    images: Images
    binary: bool  # the probabilities as bytes after the JSON
    top: int  # > 0: that many "value:index:label" strings a picture instead of numbers
    seconds: float  # it may wait in the queue; 0 leaves that to the server


def parse_json(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`.

    Raises:
        BadRequest: it is none, or holds NaN, an infinity or a number of thousands of digits.
    """
    try:
        document = pydantic_core.from_json(data, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise BadRequest(f"the body is no JSON ({error})") from None
    if not isinstance(document, dict):
        raise BadRequest("the body must be a JSON object")
    return document


def dump_json(document: object) -> bytes:
    """`document` as compact JSON."""
    return pydantic_core.to_json(document)


def parse_infer(body: bytes, header_length: bytes | None, size: tuple[int, int], most: int) -> InferRequest:
    """Read an infer request for a model of pictures of `size` (height, width), at most `most` of them.

    Raises:
        BadRequest: anything about it is not as the protocol and the model want it.
    """
    split = len(body)
    if header_length is not None:
        if not header_length.isdigit() or len(header_length) > 12 or not 0 < int(header_length) <= len(body):
            raise BadRequest(f"{HEADER_LENGTH} must be the bytes of JSON, 1 to {len(body)} here")
        split = int(header_length)
    document = parse_json(body[:split] if split < len(body) else body)
    return read_infer(document, memoryview(body)[split:], size, most)


def read_infer(document: dict[str, Any], tail: memoryview, size: tuple[int, int], most: int) -> InferRequest:
    """Read an infer request from its JSON object and the bytes of a binary tensor, `tail`, that came with it.

    Raises:
        BadRequest: as `parse_infer`.
    """
    parameters = _object(document.get("parameters"), "parameters")
    identifier = document.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise BadRequest("id must be a string")
    binary = _flag(parameters, "binary_data_output")
    binary, top = _parse_outputs(document.get("outputs"), binary)
    timeout = parameters.get("timeout", 0)
    if not isinstance(timeout, int) or isinstance(timeout, bool) or not 0 <= timeout < 2**63:
        raise BadRequest("timeout must be microseconds, a number of at least 0")
    images = _parse_input(document.get("inputs"), tail, size, most)
    return InferRequest(identifier, images, binary, top, timeout / 1e6)


def _parse_input(inputs: Any, tail: memoryview, size: tuple[int, int], most: int) -> Images:
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise BadRequest(f"inputs must be a list of one tensor, {INPUT}")
    tensor = inputs[0]
    if tensor.get("name") != INPUT:
        raise BadRequest(f"unexpected inference input {_shown(tensor.get('name'))}; the model's only one is {INPUT}")
    if tensor.get("datatype") != "UINT8":
        raise BadRequest(f"{INPUT} must be UINT8. Received: {_shown(tensor.get('datatype'))}")
    shape = _parse_shape(tensor.get("shape"), size, most)
    parameters = _object(tensor.get("parameters"), "parameters of the input")
    if "shared_memory_region" in parameters:
        raise BadRequest("shared memory is not offered; send the data in the body")
    length = parameters.get("binary_data_size")
    if length is None:
        if tail:
            raise BadRequest(f"{len(tail)} bytes after the JSON that no tensor claims")
        return _parse_numbers(tensor.get("data"), shape)
    if "data" in tensor:
        raise BadRequest(f"{INPUT} has both data and binary_data_size; send one")
    expected = shape[0] * shape[1] * shape[2] * shape[3]
    if length != expected or len(tail) != expected:
        claimed = "" if length == len(tail) else f" and binary_data_size {_shown(length)}"
        raise BadRequest(f"{INPUT} of shape {list(shape)} takes {expected} bytes. Received: {len(tail)} bytes{claimed}")
    return np.frombuffer(tail, np.uint8).reshape(shape)


def _parse_shape(shape: Any, size: tuple[int, int], most: int) -> tuple[int, int, int, int]:
    height, width = size
    if (
        not isinstance(shape, list)
        or not all(type(length) is int for length in shape)
        or shape[1:] != [height, width, 3]
        or shape[0] < 1
    ):
        raise BadRequest(f"{INPUT} must be of shape [N, {height}, {width}, 3]. Received: {_shown(shape)}")
    if shape[0] > most:
        raise BadRequest(f"at most {most} pictures in one request. Received: {_shown(shape[0])}")
    return shape[0], height, width, 3


def _parse_numbers(data: Any, shape: tuple[int, int, int, int]) -> Images:
    if not isinstance(data, list):
        raise BadRequest(f"{INPUT} has no data; send numbers in data, or bytes with binary_data_size")
    try:
        numbers: npt.NDArray[Any] = np.asarray(data)
    except (ValueError, OverflowError):
        raise BadRequest(f"data must be numbers for shape {list(shape)}, nested evenly or flat") from None
    if numbers.dtype.kind not in "iu":
        raise BadRequest("data must be whole numbers from 0 to 255")
    if numbers.shape not in (shape, (int(np.prod(shape)),)):
        raise BadRequest(f"data does not fit shape {list(shape)}. Received: {_shown(list(numbers.shape))}")
    if numbers.min() < 0 or numbers.max() > 255:
        raise BadRequest("data must be whole numbers from 0 to 255")
    return numbers.astype(np.uint8).reshape(shape)


def _parse_outputs(outputs: Any, binary: bool) -> tuple[bool, int]:
    if outputs is None or outputs == []:
        return binary, 0
    if not isinstance(outputs, list) or len(outputs) != 1 or not isinstance(outputs[0], dict):
        raise BadRequest(f"outputs must be a list of one tensor, {OUTPUT}")
    if outputs[0].get("name") != OUTPUT:
        raise BadRequest(
            f"unexpected inference output {_shown(outputs[0].get('name'))}; the model's only one is {OUTPUT}"
        )
    parameters = _object(outputs[0].get("parameters"), "parameters of the output")
    if "shared_memory_region" in parameters:
        raise BadRequest("shared memory is not offered; the answer comes in the body")
    top = parameters.get("classification", 0)
    if type(top) is not int or top < 0:
        raise BadRequest("classification must be a number of classes, at least 1")
    return (_flag(parameters, "binary_data") if "binary_data" in parameters else binary), top


def _object(value: Any, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(f"{what} must be a JSON object")
    return value


def _flag(parameters: dict[str, Any], key: str) -> bool:
    value = parameters.get(key, False)
    if not isinstance(value, bool):
        raise BadRequest(f"{key} must be true or false")
    return value


def _shown(value: Any) -> str:
    """A value of the request, short enough to be repeated in an answer."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


@dataclass(frozen=True, slots=True)
class Output:
    """The answer's one tensor: probabilities, or strings where classes were asked for."""

    datatype: str
    shape: list[int]
    values: Probabilities | list[str]

    @property
    def raw(self) -> bytes:
        """As the binary extension writes it: little endian, each string after its length in 4 bytes."""
        if isinstance(self.values, list):
            return b"".join(map(_length_prefixed, self.values))
        return self.values.tobytes()


def make_output(request: InferRequest, probabilities: Probabilities, classes: list[str]) -> Output:
    """What `request` wants of the `probabilities`, N×C float32."""
    if not request.top:
        return Output("FP32", list(probabilities.shape), probabilities)
    strings = _classification(probabilities, request.top, classes)
    return Output("BYTES", [len(probabilities), len(strings) // len(probabilities)], strings)


def encode_infer(
    request: InferRequest, probabilities: Probabilities, name: str, version: str, classes: list[str]
) -> tuple[bytes, int | None]:
    """The answer's body, and how many of its bytes are JSON when tensors follow it."""
    made = make_output(request, probabilities, classes)
    output: dict[str, Any] = {"name": OUTPUT, "datatype": made.datatype, "shape": made.shape}
    raw = b""
    if request.binary:
        raw = made.raw
        output["parameters"] = {"binary_data_size": len(raw)}
    else:
        output["data"] = made.values if isinstance(made.values, list) else made.values.ravel().tolist()
    document: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": [output]}
    if request.id is not None:
        document["id"] = request.id
    head = dump_json(document)
    return (head + raw, len(head)) if request.binary else (head, None)


def _classification(probabilities: Probabilities, top: int, classes: list[str]) -> list[str]:
    """`value:index:label` of the `top` most probable classes of each picture."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return [
        f"{row[index]:f}:{index}:{classes[index]}"
        for row, indices in zip(probabilities, order, strict=True)
        for index in indices
    ]


def _length_prefixed(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data
