"""Bodies of requests: read and unpacked within bounds of size and time."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping

from starlette.types import Receive

from serving.errors import BadRequest, Gone, RequestError
from serving.settings import Limits

# What is read and thrown away of a body that is too long, so that the client gets to read the answer.
_DRAINED = 4

_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, limits: Limits) -> bytes:
    """The whole body, unpacked.

    Raises:
        RequestError: 413 too long, 408 too slow, 415 an unknown encoding, 400 broken packing.
        Gone: the client left.
    """
    body = await _read_raw(headers, receive, limits)
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
    return body if encoding in ("", "identity") else unpack(body, encoding, limits.max_body_bytes)


async def _read_raw(headers: Mapping[bytes, bytes], receive: Receive, limits: Limits) -> bytes:
    declared = headers.get(b"content-length", b"0")
    if not declared.isdigit():
        raise BadRequest("content-length is no number")
    oversized = int(declared) > limits.max_body_bytes
    chunks = bytearray()
    read = 0
    try:
        async with asyncio.timeout(limits.patience):
            message = await receive()
            if not oversized and message["type"] == "http.request" and not message.get("more_body"):
                body: bytes = message.get("body", b"")
                if len(body) <= limits.max_body_bytes:
                    return body  # the rule: nothing to put together
            while True:
                if message["type"] == "http.disconnect":
                    raise Gone
                chunk = message.get("body", b"")
                read += len(chunk)
                oversized = oversized or read > limits.max_body_bytes
                if oversized:
                    chunks.clear()
                else:
                    chunks += chunk
                if not message.get("more_body") or read > _DRAINED * limits.max_body_bytes:
                    break
                message = await receive()
    except TimeoutError:
        text = f"the body did not arrive within {limits.patience:g} s"
        raise RequestError(408, text, {"connection": "close"}) from None
    if oversized:
        text = f"the body is longer than {limits.max_body_bytes} bytes"
        raise RequestError(413, text, {"connection": "close"})
    return bytes(chunks)


def unpack(body: bytes, encoding: str, limit: int) -> bytes:
    """`body` unpacked from gzip or deflate to at most `limit` bytes.

    Raises:
        RequestError: 413 more than that, 415 another encoding, 400 broken or truncated.
    """
    if encoding not in _WINDOWS:
        raise RequestError(415, "content-encoding must be gzip, deflate or identity")
    unpacker = zlib.decompressobj(_WINDOWS[encoding])
    try:
        data = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise BadRequest(f"the body is no whole {encoding} ({error})") from None
    if len(data) > limit:
        raise RequestError(413, f"the unpacked body is longer than {limit} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise BadRequest(f"the body is no whole {encoding} (it ends too early or too late)")
    return data
