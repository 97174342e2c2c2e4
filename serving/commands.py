"""What `graft serve` does between its flags and the server: find models, read keys, say what is up."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Sequence
from pathlib import Path

from graft.errors import InputError
from serving.repository import Repository, find_sources
from serving.server import serve
from serving.settings import Security, Settings


def serve_models(paths: Sequence[Path], latest: int, settings: Settings) -> None:
    """Serve the models found at `paths` until told to stop.

    Raises:
        GraftError: a model cannot be opened, the address cannot be bound, or a TLS file is missing.
    """
    _check_tls(settings.security)
    sources = [source for path in paths for source in find_sources(path, latest)]
    serve(sources, settings, announce)


def _check_tls(security: Security) -> None:
    certificate, key = security.tls_certificate, security.tls_key
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise InputError("TLS wants both --tls-certificate and --tls-key")
    for file in (certificate, key):
        if not file.is_file():
            raise InputError(f"there is no TLS file {file}")
    try:
        # Without a password given, OpenSSL would ask the terminal for one.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except OSError as error:
        raise InputError(
            f"{certificate} and {key} are no PEM certificate and its key without a password ({error})"
        ) from error


def read_keys(path: Path | None) -> frozenset[str]:
    """The API keys in `path`, one a line; lines that begin with # are notes.

    Raises:
        InputError: the file cannot be read or holds no key.
    """
    if path is None:
        return frozenset()
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the API keys in {path} cannot be read ({error})") from error
    keys = frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise InputError(f"{path} holds no API key; write one a line")
    return keys


def announce(repository: Repository, url: str, grpc_address: str | None) -> None:
    """Say on stderr what is served and where."""
    lines = [
        f"  {version.name} version {version.version} on {version.model.provider}: "
        f"{len(version.model.classes)} classes, {version.model.image_size[0]} pixels"
        for version in repository.versions()
    ]
    lines += [f"  page      {url}/", f"  clients   {url}/v2"]
    if grpc_address is not None:
        lines.append(f"  gRPC      {grpc_address}")
    lines.append(f"  documents {url}/docs")
    sys.stderr.write("\n".join(["Graft serves", *lines, ""]))
    sys.stderr.flush()
