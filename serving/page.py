"""The page at `/` and the pages beside it: plain files of this package, nothing from any other address."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PREFIX = "/static/"
_FOLDER = Path(__file__).parent / "web"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def routes() -> list[Route]:
    """A route for each file: no path of a request is ever opened."""
    names = {"/": "index.html", "/docs": "docs.html"}
    names |= {f"{PREFIX}{path.name}": path.name for path in _FOLDER.iterdir() if path.suffix in (".css", ".js", ".svg")}
    return [_route(path, _FOLDER / name) for path, name in names.items()]


def _route(path: str, file: Path) -> Route:
    content = file.read_bytes()

    async def endpoint(_: Request) -> Response:
        return Response(content, headers=_HEADERS, media_type=_TYPES[file.suffix])

    return Route(path, endpoint, methods=["GET"])
