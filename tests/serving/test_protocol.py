"""Bytes of the Open Inference Protocol to pictures and back, and every way they can be wrong."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest

from serving.bodies import unpack
from serving.errors import BadRequest, RequestError
from serving.protocol import InferRequest, encode_infer, parse_infer

SHAPE = [1, 2, 2, 3]
DATA = list(range(12))


def request(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "image", "datatype": "UINT8", "shape": SHAPE, "data": DATA, **changes}
    return {"inputs": [{key: value for key, value in tensor.items() if value is not ...}]}


def parse(document: Any, tail: bytes | None = None, length: int | None = None) -> InferRequest:
    head = document if isinstance(document, bytes) else json.dumps(document).encode()
    if tail is None:
        return parse_infer(head, None, (2, 2), 4)
    return parse_infer(head + tail, str(len(head) if length is None else length).encode(), (2, 2), 4)


def test_numbers_may_be_flat_or_nested() -> None:
    nested = np.array(DATA).reshape(SHAPE).tolist()
    for data in (DATA, nested):
        assert parse(request(data=data)).images.tolist() == nested


def test_binary_tensors_follow_the_json() -> None:
    document = request(data=..., parameters={"binary_data_size": 12})
    assert parse(document, bytes(DATA)).images.ravel().tolist() == DATA


def test_what_is_asked_for_is_read() -> None:
    document = request() | {
        "id": "a",
        "parameters": {"timeout": 1500, "binary_data_output": True},
        "outputs": [{"name": "probabilities", "parameters": {"classification": 3}}],
    }
    parsed = parse(document)
    assert (parsed.id, parsed.binary, parsed.top, parsed.seconds) == ("a", True, 3, 0.0015)


WRONG: list[tuple[Any, str]] = [
    (b"", "no JSON"),
    (b"{", "no JSON"),
    (b"[]", "JSON object"),
    (b'{"inputs": NaN}', "no JSON"),
    (b"[" * 100_000, "no JSON"),
    (b'{"inputs":' + b"9" * 100_000 + b"}", "no JSON"),
    ({}, "inputs"),
    ({"inputs": {}}, "inputs"),
    ({"inputs": [1]}, "inputs"),
    ({"inputs": [request()["inputs"][0]] * 2}, "inputs"),
    (request(name="picture"), "unexpected inference input 'picture'"),
    (request(datatype="FP32"), "must be UINT8"),
    (request(datatype=...), "must be UINT8"),
    (request(shape=[1, 3, 2, 2]), "shape"),
    (request(shape=[0, 2, 2, 3]), "shape"),
    (request(shape=[-1, 2, 2, 3]), "shape"),
    (request(shape=[True, 2, 2, 3]), "shape"),
    (request(shape=[1.0, 2, 2, 3]), "shape"),
    (request(shape=[10**30, 2, 2, 3]), "at most 4"),
    (request(shape=[5, 2, 2, 3]), "at most 4"),
    (request(shape="1,2,2,3"), "shape"),
    (request(data=...), "no data"),
    (request(data=DATA[:-1]), "does not fit"),
    (request(data=[DATA, DATA]), "does not fit"),
    (request(data=[DATA, 3]), "nested evenly"),
    (request(data=[*DATA[:-1], 256]), "0 to 255"),
    (request(data=[*DATA[:-1], -1]), "0 to 255"),
    (request(data=[*DATA[:-1], 1.5]), "whole numbers"),
    (request(data=[*DATA[:-1], "1"]), "whole numbers"),
    (request(data=[*DATA[:-1], None]), "whole numbers"),
    (request(data=[True] * 12), "whole numbers"),
    (request(data=[*DATA[:-1], 10**40]), "whole numbers"),
    (request(data=[]), "whole numbers"),
    (request(parameters=[]), "JSON object"),
    (request(parameters={"binary_data_size": 12}), "send one"),
    (request(data=..., parameters={"binary_data_size": 12}), "Received: 0 bytes and"),
    (request(data=..., parameters={"binary_data_size": "12"}), "binary_data_size '12'"),
    (request(data=..., parameters={"binary_data_size": -1}), "binary_data_size -1"),
    (request(data=..., parameters={"shared_memory_region": "r"}), "shared memory"),
    (request() | {"id": 7}, "id must be a string"),
    (request() | {"parameters": {"timeout": -1}}, "timeout"),
    (request() | {"parameters": {"timeout": 1.5}}, "timeout"),
    (request() | {"parameters": {"binary_data_output": "yes"}}, "true or false"),
    (request() | {"outputs": "probabilities"}, "outputs"),
    (request() | {"outputs": [{"name": "logits"}]}, "unexpected inference output 'logits'"),
    (
        request() | {"outputs": [{"name": "probabilities", "parameters": {"classification": -1}}]},
        "classification",
    ),
    (
        request() | {"outputs": [{"name": "probabilities", "parameters": {"classification": True}}]},
        "classification",
    ),
]


@pytest.mark.parametrize(("document", "words"), WRONG)
def test_wrong_requests_are_refused_with_the_reason(document: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=words) as caught:
        parse(document)
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("length", [0, 9999, 5])
def test_a_lying_header_length_is_refused(length: int) -> None:
    with pytest.raises(BadRequest):
        parse(request(data=..., parameters={"binary_data_size": 12}), bytes(DATA), length)


@pytest.mark.parametrize("tail", [b"", bytes(11), bytes(13)])
def test_binary_data_of_another_size_is_refused(tail: bytes) -> None:
    with pytest.raises(BadRequest, match="takes 12 bytes"):
        parse(request(data=..., parameters={"binary_data_size": 12}), tail + b"")


def test_bytes_that_no_tensor_claims_are_refused() -> None:
    with pytest.raises(BadRequest, match="no tensor claims"):
        parse(request(), b"more")


PROBABILITIES = np.array([[0.25, 0.5, 0.25], [0.0, 0.1, 0.9]], np.float32)


def encode(binary: bool, top: int) -> tuple[dict[str, Any], bytes]:
    asked = InferRequest("a", np.zeros((2, 2, 2, 3), np.uint8), binary, top, 0)
    data, length = encode_infer(asked, PROBABILITIES, "m", "1", ["x", "y", "z"])
    split = len(data) if length is None else length
    return json.loads(data[:split]), data[split:]


def test_answers_carry_the_numbers_exactly() -> None:
    document, tail = encode(binary=False, top=0)
    assert (document["model_name"], document["model_version"], document["id"], tail) == ("m", "1", "a", b"")
    assert document["outputs"][0]["data"] == PROBABILITIES.ravel().tolist()
    document, tail = encode(binary=True, top=0)
    assert document["outputs"][0]["parameters"] == {"binary_data_size": 24}
    assert (np.frombuffer(tail, np.float32).reshape(2, 3) == PROBABILITIES).all()


def test_classifications_are_value_index_label() -> None:
    document, _ = encode(binary=False, top=2)
    output = document["outputs"][0]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert output["data"] == ["0.500000:1:y", "0.250000:0:x", "0.900000:2:z", "0.100000:1:y"]
    document, tail = encode(binary=True, top=9)
    assert document["outputs"][0]["shape"] == [2, 3]
    (length,) = struct.unpack_from("<I", tail)
    assert tail[4 : 4 + length] == b"0.500000:1:y"


def test_packed_bodies_are_unpacked_within_bounds() -> None:
    data = b"x" * 1000
    assert unpack(gzip.compress(data), "gzip", 1000) == data
    assert unpack(zlib.compress(data), "deflate", 1000) == data


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (gzip.compress(bytes(2000)), "gzip", 413),
        (gzip.compress(b"abc")[:-5], "gzip", 400),
        (gzip.compress(b"abc") + b"rest", "gzip", 400),
        (b"no gzip", "gzip", 400),
        (b"", "gzip", 400),
        (b"abc", "deflate", 400),
        (b"abc", "br", 415),
    ],
)
def test_broken_or_exploding_bodies_are_refused(body: bytes, encoding: str, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        unpack(body, encoding, 1000)
    assert caught.value.status == status
