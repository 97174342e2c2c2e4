"""Asking a running server, for `graft predict --url`: files of pictures to labels."""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from graft.errors import GraftError, InputError
from graft.prediction import Prediction

# Small enough for every server's bound on bodies unless single pictures are huge.
BATCH = 8
KEY_VARIABLE = "GRAFT_API_KEY"
SECONDS = 120


def predict_files(url: str, paths: Sequence[Path], top_k: int, model: str | None = None) -> Iterator[Prediction]:
    """The `top_k` best labels of each picture, in order, from the server at `url`.

    Raises:
        InputError: a file cannot be read, or the server refuses it.
        GraftError: the server cannot be reached or fails.
    """
    for start in range(0, len(paths), BATCH):
        some = paths[start : start + BATCH]
        document: dict[str, Any] = {"images": [_encode(path) for path in some], "top_k": top_k}
        if model is not None:
            document["model"] = model
        results = _post(f"{url.rstrip('/')}/v1/classify", document)["results"]
        for path, result in zip(some, results, strict=True):
            labels = [(row["label"], row["probability"]) for row in result["predictions"]]
            yield Prediction(str(path), labels)


def _encode(path: Path) -> str:
    try:
        return base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error


def _post(url: str, document: dict[str, Any]) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise InputError(f"--url wants http://HOST:PORT or https://HOST:PORT. Received: {url}")
    headers = {"content-type": "application/json"}
    if key := os.environ.get(KEY_VARIABLE):
        headers["authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, json.dumps(document).encode(), headers)  # noqa: S310 - checked above
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as response:  # noqa: S310
            answer: dict[str, Any] = json.load(response)
            return answer
    except urllib.error.HTTPError as error:
        raise (InputError if error.code < 500 else GraftError)(f"{url} refused: {_reason(error)}") from None
    except (OSError, ValueError) as error:
        raise GraftError(
            f"{url} does not answer ({getattr(error, 'reason', error)}); is `graft serve` running?"
        ) from None


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError):
        return f"status {error.code}"
