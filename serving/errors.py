"""What a request can do wrong, as the status and sentence it is answered with."""

from __future__ import annotations


class RequestError(Exception):
    """Answered as `{"error": message}` with `status`; no fault of the server's."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}


class BadRequest(RequestError):  # noqa: N818 - named as HTTP names it
    """400: the request cannot be understood."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message)


class NotFound(RequestError):  # noqa: N818
    """404: no such model, version or page."""

    def __init__(self, message: str) -> None:
        super().__init__(404, message)


class Busy(RequestError):  # noqa: N818
    """503: not ready, or too many requests wait already; come back after `seconds`."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(503, message, {"retry-after": str(max(1, round(seconds)))})


class Gone(Exception):  # noqa: N818
    """The client closed the connection: nobody waits for the answer."""
