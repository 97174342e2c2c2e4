"""Infer messages of the gRPC protocol to pictures, probabilities to messages.

A request is turned into the document it would be over HTTP, so that both are held to the same rules.
"""

from __future__ import annotations

import itertools
from typing import Any

from graft.inference import INPUT, OUTPUT, Probabilities
from serving.errors import BadRequest
from serving.protocol import InferRequest, make_output, read_infer
from serving.repository import Version


def read_request(message: Any, version: Version) -> InferRequest:
    """The request in a `ModelInferRequest`; `binary` says that its tensor came raw.

    Raises:
        BadRequest: anything about it is not as the protocol and the model want it.
    """
    raw = message.raw_input_contents
    if raw and (len(raw) != len(message.inputs) or any(tensor.HasField("contents") for tensor in message.inputs)):
        raise BadRequest("raw_input_contents must hold one entry for each input, and no input contents beside it")
    document = {
        "id": message.id or None,
        "parameters": {**_parameters(message), "binary_data_output": bool(raw)},
        "inputs": [_input(tensor, data) for tensor, data in itertools.zip_longest(message.inputs, raw)],
        "outputs": [{"name": output.name, "parameters": _parameters(output)} for output in message.outputs],
    }
    tail = memoryview(raw[0] if raw else b"")
    return read_infer(document, tail, version.model.image_size, version.batcher.max_batch_size)


def _input(tensor: Any, raw: bytes | None) -> dict[str, Any]:
    found = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    if raw is not None:
        return {**found, "parameters": {**_parameters(tensor), "binary_data_size": len(raw)}}
    numbers = list(tensor.contents.uint_contents)
    if not numbers:
        raise BadRequest(f"{INPUT} has no data; send bytes in raw_input_contents or numbers in uint_contents")
    return {**found, "parameters": _parameters(tensor), "data": numbers}


def _parameters(message: Any) -> dict[str, Any]:
    found = {}
    for key, value in message.parameters.items():
        kind = value.WhichOneof("parameter_choice")
        found[key] = getattr(value, kind) if kind else None
    return found


def write_response(response: Any, request: InferRequest, probabilities: Probabilities, version: Version) -> Any:
    """Fill in a `ModelInferResponse`: raw where the request was, else typed."""
    made = make_output(request, probabilities, version.model.classes)
    response.model_name, response.model_version, response.id = version.name, version.version, request.id or ""
    tensor = response.outputs.add(name=OUTPUT, datatype=made.datatype, shape=made.shape)
    if request.binary:
        response.raw_output_contents.append(made.raw)
    elif isinstance(made.values, list):
        tensor.contents.bytes_contents.extend(text.encode() for text in made.values)
    else:
        tensor.contents.fp32_contents.extend(made.values.ravel().tolist())
    return response
