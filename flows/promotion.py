"""Moving `prod`: prove the file, move the tag, publish the folder, swap the servers; undo it where one is unwell.

In: the registry and a version. Out: the stage at that version everywhere, or an error and everything as before.
Killed in between, `settle` brings folder and servers in line with the tags.
"""

from __future__ import annotations

import datetime
import json
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flows import judging
from flows.registry import PUBLISHED, Store
from graft import history
from graft.errors import GraftError, InputError
from graft.inference import open_model
from graft.registry import Assignment, Version

SWAP_SECONDS = 60.0
TOLERANCE = 0.02  # a server on a GPU rounds otherwise


def promote(store: Store, version: Version, why: str, servers: Sequence[str]) -> Assignment:
    """Make `version` the one that servers serve.

    Raises:
        GraftError: it does not load, git refuses, or a server is unwell with it; `prod` is as it was.
    """
    prove(store, version)
    before = store.read().current()
    settle(store, ())
    move = store.assign(version, why)
    try:
        settle(store, servers)
    except GraftError as error:
        if before is None or before.version == version.name:
            raise
        store.assign(store.read().version(before.version), f"Roll back to {before.version}: {error}")
        settle(store, servers)
        raise GraftError(
            f"{version.name} was promoted and failed ({error}); prod is back at {before.version}"
        ) from error
    return move


def by_hand(store: Store, version: Version, why: str, servers: Sequence[str]) -> Assignment:
    """`promote` as a person asks for it, told in the history like every night.

    Raises:
        GraftError: as `promote`.
    """
    move = promote(store, version, why, servers)
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    told = {"time": when, "outcome": "promote", "why": why, "version": version.name}
    history.append(store.root, {**told, "accuracy": version.record.get("accuracy")})
    return move


def rollback(store: Store, servers: Sequence[str]) -> Assignment:
    """Move `prod` to the version before the one it is now.

    Raises:
        InputError: there is none.
        GraftError: as `promote`.
    """
    now = store.read()
    name = now.previous()
    if name is None:
        raise InputError("there is no earlier version to roll back to; `graft versions` lists what there is")
    return by_hand(store, now.version(name), f"Roll back to {name}", servers)


def prove(store: Store, version: Version) -> None:
    """See that the version's file can be had, opened, and answers as it did when it was judged.

    Raises:
        GraftError: it does not.
    """
    with tempfile.TemporaryDirectory(prefix="graft-prove-") as folder:
        _check(store.file(version, Path(folder)), version)


def settle(store: Store, servers: Sequence[str]) -> Path | None:
    """Bring the served folder and the running servers in line with the tags.

    Raises:
        GraftError: the live version cannot be published, or a server that answers is unwell with it.
    """
    now = store.read()
    current = now.current()
    if current is None:
        return None
    version = now.version(current.version)
    folder = store.publish(lambda path: _check(path, version))
    for url in servers:
        _swap(url.rstrip("/"), current, version)
    return folder


def _check(path: Path, version: Version) -> None:
    model = open_model(path, "cpu")
    answer = np.array(judging.probe_answer(model))
    if not _agrees(answer, version):
        raise GraftError(f"the file of {version.name} answers otherwise than when it was judged")


def _agrees(answer: Any, version: Version) -> bool:
    expected = version.record.get("probe")
    if not np.isfinite(answer).all() or abs(float(np.sum(answer)) - 1) > TOLERANCE:
        return False
    return expected is None or (len(expected) == len(answer) and bool(np.abs(answer - expected).max() <= TOLERANCE))


def _swap(url: str, move: Assignment, version: Version) -> None:
    """Have one server load the new folder, and ask it the probe.

    A server that is down has nothing to swap: it finds the folder when it starts.
    """
    model = f"{url}/v2/models/{move.stage}"
    try:
        status, said = _ask(f"{url}/v2/repository/models/{move.stage}/load", {})
    except OSError:
        return
    if status not in (200, 401, 403):  # without the right to load by request, the server's own look must do
        raise GraftError(f"{url} cannot load {version.name}: {said.get('error', status)}")
    _await_version(model, str(move.number), version)
    _, metadata = _ask(model)
    height, width = metadata["inputs"][0]["shape"][1:3]
    picture = judging.probe(height, width)
    tensor = {"name": "image", "shape": list(picture.shape), "datatype": "UINT8", "data": picture.ravel().tolist()}
    status, said = _ask(f"{model}/versions/{move.number}/infer", {"inputs": [tensor]})
    if status != 200:
        raise GraftError(f"{url} cannot answer with {version.name}: {said.get('error', status)}")
    outputs = {output["name"]: output["data"] for output in said["outputs"]}
    if not _agrees(np.array(outputs["probabilities"], float).ravel(), version):
        raise GraftError(f"{url} answers otherwise with {version.name} than when it was judged")


def _await_version(model: str, number: str, version: Version) -> None:
    end = time.monotonic() + SWAP_SECONDS
    while True:
        status, metadata = _ask(model)
        if status == 200 and number in metadata["versions"]:
            return
        if time.monotonic() > end:
            raise GraftError(f"{model} did not take {version.name} up within {SWAP_SECONDS:.0f} s")
        time.sleep(0.1)


def _ask(url: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    """Status and JSON of one request; a POST where there is a body."""
    if not url.startswith(("http://", "https://")):
        raise InputError(f"a server's address begins with http:// or https:// (retrain.servers). Received: {url}")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - checked above
    try:
        with urllib.request.urlopen(request, timeout=SWAP_SECONDS) as reply:  # noqa: S310
            return reply.status, _json(reply.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _json(error.read())


def _json(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def followed(root: Path) -> Path:
    """The folder that a server of `prod` follows, in line with the tags.

    Raises:
        InputError: nothing is live yet.
        GraftError: the live version cannot be had.
    """
    return live_file(root).parents[1]


def live_file(root: Path) -> Path:
    """The file of the live version, where servers read it.

    Raises:
        InputError: nothing is live yet.
        GraftError: the live version cannot be had.
    """
    store = Store(root)
    with store.locked():
        folder = settle(store, ())
    if folder is None:
        raise InputError("no version is live yet; `graft retrain` promotes the first, or serve a file: --model PATH")
    return folder / PUBLISHED
