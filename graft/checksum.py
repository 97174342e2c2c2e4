"""A checksum that travels inside the file it protects.

The metadata entry `graft.sha256` holds the SHA-256 of the whole file with that entry's 64 digits read as
zeros, so one file alone says whether it arrived as it was written. It guards against damage, not against malice.
"""

from __future__ import annotations

import hashlib
import re

from graft.errors import InputError

KEY = "graft.sha256"
BLANK = "0" * 64

# A protobuf StringStringEntryProto: field 1 the key, field 2 a string of 64 (0x40) bytes.
_ENTRY = re.compile(b"\x0a" + bytes([len(KEY)]) + KEY.encode() + b"\x12\x40([0-9a-f]{64})")


def seal(data: bytes) -> bytes:
    """`data`, an ONNX file whose metadata holds `graft.sha256` as `BLANK`, with the true digits in their place.

    Raises:
        ValueError: there is not exactly one such entry.
    """
    entries = list(_ENTRY.finditer(data))
    if len(entries) != 1 or entries[0][1] != BLANK.encode():
        raise ValueError(f"one blank {KEY} is wanted. Received: {len(entries)} entries")
    start, end = entries[0].span(1)
    return data[:start] + _digest(data, start, end).encode() + data[end:]


def verify(data: bytes, name: str) -> None:
    """Check the bytes of the file `name`; a file without a checksum, made by hand, passes.

    Raises:
        InputError: the bytes are not those that were sealed.
    """
    for entry in _ENTRY.finditer(data):
        if _digest(data, *entry.span(1)) != entry[1].decode():
            raise InputError(
                f"{name} is damaged: its bytes do not match its checksum; copy it again or run `graft run --force`"
            )


def _digest(data: bytes, start: int, end: int) -> str:
    view = memoryview(data)
    digest = hashlib.sha256(view[:start])
    digest.update(BLANK.encode())
    digest.update(view[end:])
    return digest.hexdigest()
