"""gRPC from the other side of a socket: what is refused and how, who gets in, and how it ends."""

from __future__ import annotations

import json
import random
import signal
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from certificates import make_certificate
from onnx_models import colour_model
from samples import PIXELS
from servers import Server, load, serving

from serving.grpc_messages import make_messages

MESSAGES = make_messages()
SERVICE = "/inference.GRPCInferenceService/"
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def target(model_file: Path) -> Iterator[Server]:
    """A server of its own, impatient, which answers others while these tests are at it."""
    flags = ("--grpc-port", "0", "--max-body", "1", "--patience", "0.5", "--drain", "0")
    with serving("--model", model_file, *flags) as server:
        with load(server, clients=1) as meanwhile:
            yield server
            meanwhile.wait_for(5)
        assert meanwhile.failures == []
        assert {status for status, _, _ in meanwhile.answers} == {200}
        assert [line for line in server.log if "traceback" in line.lower()] == []
        assert [line for line in server.access if '"INTERNAL"' in line] == []


@pytest.fixture
def channel(target: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(target.grpc, [("grpc.max_send_message_length", -1)]) as opened:
        yield opened


def infer(images: np.ndarray[Any, Any] = PIXELS, **fields: Any) -> bytes:
    """A `ModelInferRequest` with raw pictures."""
    message = MESSAGES["ModelInferRequest"](model_name="colours", raw_input_contents=[images.tobytes()])
    message.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    for name, value in fields.items():
        setattr(message, name, value)
    return bytes(message.SerializeToString())


def ask(channel: grpc.Channel, method: str, data: bytes, **options: Any) -> tuple[grpc.StatusCode, Any]:
    """The status, with the answer's bytes or the error's sentence."""
    try:
        return Code.OK, channel.unary_unary(SERVICE + method)(data, timeout=60, **options)
    except grpc.RpcError as error:
        return error.code(), error.details()


def test_what_is_wrong_is_said_with_its_code(channel: grpc.Channel) -> None:
    def message(**tensor: Any) -> bytes:
        made = MESSAGES["ModelInferRequest"](model_name="colours")
        made.inputs.add(**{"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 3], **tensor})
        return bytes(made.SerializeToString())

    for method, data, code, words in (
        ("ModelInfer", b"\xff\xff", Code.INVALID_ARGUMENT, "no ModelInferRequest"),
        ("ModelInfer", b"", Code.NOT_FOUND, "there is no model"),
        ("ModelInfer", message(), Code.INVALID_ARGUMENT, "has no data"),
        ("ModelInfer", message(contents={"uint_contents": [1, 2]}), Code.INVALID_ARGUMENT, "does not fit"),
        ("ModelInfer", message(contents={"uint_contents": [256] * 3072}), Code.INVALID_ARGUMENT, "0 to 255"),
        ("ModelInfer", message(datatype="FP32", contents={"uint_contents": [1]}), Code.INVALID_ARGUMENT, "be UINT8"),
        ("ModelInfer", message(name="x", contents={"uint_contents": [1]}), Code.INVALID_ARGUMENT, "unexpected"),
        ("ModelInfer", infer(PIXELS[:, :8]), Code.INVALID_ARGUMENT, "must be of shape"),
        ("ModelInfer", infer() + message(), Code.INVALID_ARGUMENT, "one entry for each input"),
        ("ModelInfer", infer(model_version="7"), Code.NOT_FOUND, "no version 7"),
        ("ModelInfer", bytes(2 << 20), Code.RESOURCE_EXHAUSTED, "larger than max"),
        ("ModelReady", b"\x0a\x07nothing", Code.NOT_FOUND, "there is no model nothing"),
        ("ModelStreamInfer", infer(), Code.UNIMPLEMENTED, "not offered"),
        ("Guess", b"", Code.UNIMPLEMENTED, "not offered"),
    ):
        found, said = ask(channel, method, data)
        assert (found, words in said) == (code, True), (method, found, said)


def test_a_small_message_that_unpacks_to_a_huge_one_is_refused(channel: grpc.Channel) -> None:
    code, said = ask(channel, "ModelInfer", bytes(16 << 20), compression=grpc.Compression.Gzip)
    assert (code, said) == (Code.RESOURCE_EXHAUSTED, "Decompressed message larger than max")


def test_broken_messages_are_refused_and_never_the_servers_fault(channel: grpc.Channel) -> None:
    rng = random.Random(7)  # noqa: S311 - the same broken bytes every time
    good = infer(PIXELS[:1])
    codes = set()
    for _ in range(200):
        body = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            body[rng.choice((rng.randrange(60), rng.randrange(len(body))))] = rng.randrange(256)
        codes.add(ask(channel, "ModelInfer", bytes(body[: rng.choice((len(body), rng.randrange(len(body))))]))[0])
    assert Code.INVALID_ARGUMENT in codes
    assert codes <= {Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND}


def test_a_client_that_sends_nothing_is_told_so_and_let_go(channel: grpc.Channel) -> None:
    never = threading.Event()

    def silence() -> Iterator[bytes]:
        never.wait(60)
        yield b""

    with pytest.raises(grpc.RpcError) as caught:
        channel.stream_unary(f"{SERVICE}ModelInfer")(silence(), timeout=60)
    never.set()
    assert caught.value.code() is Code.DEADLINE_EXCEEDED
    assert "did not arrive within 0.5 s" in caught.value.details()


def test_calls_have_ids_and_are_counted(channel: grpc.Channel, target: Server) -> None:
    _, call = channel.unary_unary(f"{SERVICE}ServerReady").with_call(b"", metadata=[("x-request-id", "mine-2")])
    assert ("x-request-id", "mine-2") in [tuple(pair) for pair in call.trailing_metadata()]
    while not any('"mine-2"' in line for line in target.access):
        target.get("/v2/health/live")
    text = target.ask("GET", "/metrics")[1]
    assert 'graft_grpc_answers_total{endpoint="ServerReady",status="OK"} 1.0' in text


def test_tls_and_keys_hold_for_both_protocols(model_file: Path, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    keys = tmp_path / "keys"
    keys.write_text("open-sesame\n")
    flags = ("--tls-certificate", certificate, "--tls-key", key, "--api-keys", keys, "--grpc-port", "0", "--drain", "0")
    with serving("--model", model_file, *flags) as server:
        context = ssl.create_default_context(cafile=str(certificate))
        ready = f"{server.url}/v2/health/ready"
        with urllib.request.urlopen(ready, context=context, timeout=30) as response:  # noqa: S310
            assert json.load(response) == {"live": True, "ready": True}
        trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(server.grpc, trusted) as channel:
            assert ask(channel, "ServerReady", b"") == (Code.OK, b"\x08\x01")
            assert ask(channel, "ServerMetadata", b"")[0] is Code.UNAUTHENTICATED
            wrong = [("authorization", "Bearer wrong")]
            assert ask(channel, "ModelInfer", infer(), metadata=wrong)[0] is Code.UNAUTHENTICATED
            for right in (("authorization", "Bearer open-sesame"), ("x-api-key", "open-sesame")):
                assert ask(channel, "ModelInfer", infer(), metadata=[right])[0] is Code.OK


def test_a_cancelled_call_frees_its_place_and_sigterm_answers_the_others(tmp_path: Path) -> None:
    path = colour_model(tmp_path / "model.onnx", work=8, size=64)
    body = infer(np.zeros((32, 64, 64, 3), np.uint8))
    with (
        serving("--model", path, "--grpc-port", "0", "--drain", "0.3", "--provider", "cpu", "--threads", "1") as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        call = channel.unary_unary(f"{SERVICE}ModelInfer")
        under_way = [call.future(body) for _ in range(5)]
        while server.pending() < 3:
            pass
        under_way.pop().cancel()
        while server.pending() > 2:
            pass
        server.process.send_signal(signal.SIGTERM)
        assert len([future.result(timeout=60) for future in under_way]) == 4
        assert server.process.wait(60) == 0
