"""What a request shows at the door, over HTTP and gRPC alike: its id and its API key."""

from __future__ import annotations

import hmac
import itertools
import re
import secrets
from collections.abc import Iterable

from serving.errors import RequestError

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestIds:
    """Ids for requests that bring none."""

    def __init__(self) -> None:
        # Unlike any other server's, and told apart from each other without asking for randomness every time.
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count()

    def take(self, given: bytes) -> bytes:
        """The id that was given, where it is one that can be logged, else a new one."""
        return given if _REQUEST_ID.fullmatch(given) else f"{self._prefix}{next(self._numbers):08x}".encode()


class Keys:
    """The API keys that open the server; without any it is open."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = [key.encode() for key in keys]

    def check(self, api_key: bytes, authorization: bytes) -> None:
        """Let in who brings a key, as `X-API-Key` or as `Authorization: Bearer KEY`.

        Raises:
            RequestError: 401.
        """
        given = api_key or authorization.removeprefix(b"Bearer ")
        if self._keys and not any([hmac.compare_digest(given, key) for key in self._keys]):  # noqa: C419 - all, in equal time
            raise RequestError(
                401, "an API key is wanted, as Authorization: Bearer KEY", {"www-authenticate": "Bearer"}
            )
