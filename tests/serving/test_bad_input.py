"""Whatever comes over the wire: a 4xx with a reason, never a 5xx or a hang, and good requests meanwhile."""

from __future__ import annotations

import gzip
import json
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from onnx_models import colour_model
from samples import PIXELS, RED, form, infer_body, picture
from servers import Server, load, serving

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)
JSON = {"content-type": "application/json"}
INFER = "/v2/models/colours/infer"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own, which must be as good after all of this as before."""
    path = colour_model(tmp_path_factory.mktemp("target") / "model.onnx")
    with serving("--model", path, "--max-body", "1", "--drain", "0") as server:
        with load(server, INFER, clients=1) as meanwhile:
            yield server
            meanwhile.wait_for(5)
        assert meanwhile.failures == []
        assert {status for status, _, _ in meanwhile.answers} == {200}
        assert [line for line in server.access if '"status":5' in line] == []
        assert [line for line in server.log if "traceback" in line.lower()] == []


def exchange(server: Server, data: bytes, *, half_close: bool = False) -> bytes:
    """Everything the server answers to raw bytes until it closes or falls silent after an answer."""
    with socket.create_connection(server.address, timeout=20) as connection:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := _read(connection):
            answer += chunk
            head, separator, body = answer.partition(b"\r\n\r\n")
            if separator and len(body) >= _length(head):
                break
    return answer


def _read(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


def _length(head: bytes) -> int:
    (line,) = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return int(line.partition(b":")[2])


def assert_refused(answer: bytes) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 4"), answer[:300]
    assert isinstance(json.loads(body)["error"], str)


def post(path: str, body: bytes, **headers: str) -> bytes:
    lines = "".join(f"{key.replace('_', '-')}: {value}\r\n" for key, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n{lines}\r\n"
    return head.encode() + body


def test_random_and_truncated_bodies(target: Server) -> None:
    rng = random.Random(7)  # noqa: S311 - the same broken bytes every time
    good, headers = infer_body(PIXELS[:1])
    uploads, kind = form(("a.png", picture(RED)))
    for _ in range(150):
        body = bytearray(good)
        for _ in range(rng.randint(1, 20)):
            body[rng.randrange(len(body) - 3072)] = rng.randrange(256)  # the JSON, not the pixels
        cut = bytes(body[: rng.randrange(len(body))])
        status, document, _ = target.ask("POST", INFER, cut, headers)
        assert status == 400, document
        assert set(document) == {"error"}
    for _ in range(150):
        cut = uploads[: rng.randrange(len(uploads) - 12)]
        broken = bytes(byte ^ (rng.randrange(256) if rng.random() < 0.05 else 0) for byte in cut)
        for body, found in ((cut, kind), (broken, kind), (rng.randbytes(200), {"content-type": "image/png"})):
            status, document, _ = target.ask("POST", "/v1/classify", body, found)
            assert status == 400, (document, body)
            assert set(document) == {"error"}


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"not gzip", {"content-encoding": "gzip"}, 400),
        (gzip.compress(bytes(64 << 20)), {"content-encoding": "gzip"}, 413),
        (b"{}", {"content-encoding": "br"}, 415),
        (bytes(2 << 20), {}, 413),
        (b"{}", {"inference-header-content-length": "-1"}, 400),
        (b"{}", {"inference-header-content-length": "99999999999999999999"}, 400),
        (b"{}", {"inference-header-content-length": "²"}, 400),
        (b"", {}, 400),
    ],
)
def test_broken_packing_and_lying_sizes(target: Server, body: bytes, headers: dict[str, str], status: int) -> None:
    found, document, _ = target.ask("POST", INFER, body, {k: v.encode("latin-1") for k, v in headers.items()})  # type: ignore[misc]
    assert found == status, document
    assert set(document) == {"error"}


@pytest.mark.parametrize(
    "options",
    [
        {"content-type": "multipart/form-data"},
        {"content-type": "multipart/form-data; boundary="},
        {"content-type": "multipart/form-data; boundary=edge; charset=nothing"},
        {"content-type": "text/plain"},
        {"content-type": "application/json"},
        {},
    ],
)
def test_uploads_of_no_kind_are_refused(target: Server, options: dict[str, str]) -> None:
    status, document, _ = target.ask("POST", "/v1/classify", b"--edge\r\n\r\nnothing", options)
    assert status in (400, 415), document
    assert set(document) == {"error"}


@pytest.mark.parametrize(
    "body",
    [
        {"images": []},
        {"images": "aGk="},
        {"images": ["%%%"]},
        {"images": [7]},
        {"images": ["aGk="]},
        {"images": ["aGk="] * 1000},
        {"images": ["aGk="], "top_k": 0},
        {"images": ["aGk="], "top_k": 1e300},
        {"images": ["aGk="], "model": 3},
        {"images": ["aGk="], "path": "/etc/passwd"},
        {"files": ["/etc/passwd"]},
        [],
        None,
    ],
)
def test_wrong_documents_are_refused(target: Server, body: object) -> None:
    status, document, _ = target.ask("POST", "/v1/classify", json.dumps(body), JSON)
    assert status == 400, document
    assert set(document) == {"error"}


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(target: Server) -> None:
    head = struct.pack(">4sIIBBBBB", b"IHDR", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    bomb += struct.pack(">I4s", 0, b"IDAT") + struct.pack(">I", zlib.crc32(b"IDAT"))
    status, document, _ = target.ask("POST", "/v1/classify", bomb, {"content-type": "image/png"})
    assert status == 400
    assert "pixels" in document["error"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "%2e%2e%2fetc", "\x00", "a" * 5000, "colours/../colours", "é"])
def test_no_name_leads_out_of_the_repository(target: Server, name: str) -> None:
    for path in (
        f"/v2/models/{quote(name)}/infer",
        f"/v2/repository/models/{quote(name)}/load",
        f"/{quote(name)}",
    ):
        status, document, _ = target.ask("POST", path, b"{}")
        assert status in (400, 404, 405), document
        assert len(document["error"]) < 300


def test_what_is_no_http_is_refused(target: Server) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST /v2 HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"y" * 200_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ):
        assert_refused(exchange(target, data))


def test_methods_that_are_not_offered(target: Server) -> None:
    for method, path in (("DELETE", "/v2"), ("GET", INFER), ("PUT", "/v1/classify"), ("PATCH", "/")):
        status, document, _ = target.ask(method, path)
        assert status in (404, 405), document
        assert set(document) == {"error"}


def test_slow_clients_are_told_so_and_cut_off(model_file: Path) -> None:
    good, headers = infer_body(PIXELS[:1])
    whole = post(INFER, good, **{k.replace("-", "_"): v for k, v in headers.items()})
    head = whole[: whole.index(b"\r\n\r\n") + 4]
    with serving("--model", model_file, "--patience", "0.5", "--drain", "0") as impatient:
        for sent in (b"", b"POST /v2 HT", whole[:40], head, whole[:-10]):
            answer = exchange(impatient, sent)
            assert answer.startswith(b"HTTP/1.1 408"), (sent, answer)
            assert_refused(answer)


def test_clients_that_drop_the_connection_leave_nothing_behind(target: Server) -> None:
    good, headers = infer_body(PIXELS[:1])
    whole = post(INFER, good, **{k.replace("-", "_"): v for k, v in headers.items()})
    before = open_files(target)
    rng = random.Random(7)  # noqa: S311 - the same broken bytes every time

    def drop() -> None:
        for _ in range(50):
            with socket.create_connection(target.address, timeout=20) as connection:
                connection.sendall(whole[: rng.randrange(1, len(whole) + 1)])
                if rng.random() < 0.5:  # a reset instead of a farewell
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))

    threads = [threading.Thread(target=drop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.ask("POST", INFER, good, headers)[0] == 200
    while open_files(target) > before + 2:
        target.get("/v2/health/live")


def open_files(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def test_pipelined_requests_are_answered_in_order(target: Server) -> None:
    asked = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"
    last = asked.replace(b"live HTTP/1.1\r\n", b"live HTTP/1.1\r\nconnection: close\r\n")
    with socket.create_connection(target.address, timeout=20) as connection:
        connection.sendall(asked * 4 + last)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.count(b"HTTP/1.1 200 OK") == 5


def test_what_the_document_describes_holds_for_generated_requests(target: Server, tmp_path: Path) -> None:
    """Schemathesis: every operation, wrong and right; no 5xx, documented statuses and bodies only."""
    command = [
        *(Path(sys.executable).with_name("schemathesis"), "run", f"{target.url}/openapi.json"),
        *(
            "--checks",
            ",".join(CHECKS),
            "--max-examples",
            "25",
            "--seed",
            "7",
            "--phases",
            "examples,coverage,fuzzing",
        ),
        # Another check needs the model: it must not be unloaded meanwhile.
        *("--exclude-path-regex", "load$", "--generation-database", "none", "--no-color"),
        *("--report", "junit", "--report-junit-path", tmp_path / "report.xml"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.findall(r"(\d+) generated", done.stdout)[-1]) > 500
