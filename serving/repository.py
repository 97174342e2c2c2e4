"""The models being served: opened from their sources, swapped under load, retired when nobody uses them.

In: sources that say which file is which version. Out: `Version` objects to run pictures on. Everything
here belongs to the event loop; only opening and warming up happen on a thread.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from graft.errors import GraftError, InputError
from graft.inference import Model, open_model
from serving.batching import Batcher
from serving.errors import BadRequest, Busy, NotFound
from serving.settings import Settings
from serving.statistics import Statistics
from serving.traffic import Recorder

logger = logging.getLogger(__name__)

FILE = "model.onnx"
UNLOADED = "unloaded"
WARM_UP_SECONDS = 1.0
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class Source(Protocol):
    """Where the versions of one model are found: a file, a folder, a registry."""

    @property
    def name(self) -> str:
        """The model's name on the server."""

    def versions(self) -> Mapping[str, Path]:
        """The file of each version that should be served, the default one last.

        Raises:
            GraftError: the source cannot be read.
        """


@dataclass(frozen=True)
class FileSource:
    """One file, which may be replaced by a newer one of the same path."""

    name: str
    path: Path

    def versions(self) -> Mapping[str, Path]:
        """The file as version 1."""
        return {"1": self.path}


@dataclass(frozen=True)
class FolderSource:
    """`FOLDER/1/model.onnx`, `FOLDER/2/model.onnx`, …: one model of a repository in Triton's layout."""

    name: str
    folder: Path
    latest: int = 1  # versions served, the highest numbers; 0 serves all

    def versions(self) -> Mapping[str, Path]:
        """The highest numbers, ascending."""
        numbers = sorted(
            int(path.parent.name) for path in self.folder.glob(f"*/{FILE}") if path.parent.name.isdecimal()
        )
        if not numbers:
            raise InputError(f"there is no {self.folder.name}/1/{FILE}; put a version there")
        return {str(number): self.folder / str(number) / FILE for number in numbers[-self.latest :]}


def find_sources(path: Path, latest: int = 1) -> list[Source]:
    """What `path` offers: a file, one model's folder of versions, or a repository of such folders.

    Raises:
        InputError: there is nothing to serve.
    """
    if path.is_file() or path.suffix == ".onnx":
        return [FileSource(open_model(path, "cpu", threads=1).name, path)]
    if any(path.glob(f"*/{FILE}")):
        return [FolderSource(path.resolve().name, path, latest)]
    names = sorted({found.parent.parent.name for found in path.glob(f"*/*/{FILE}")})
    if not names:
        raise InputError(f"no model at {path}; it wants an .onnx file or NAME/VERSION/{FILE} below it")
    return [FolderSource(name, path / name, latest) for name in names]


class _Fingerprint(NamedTuple):
    """A file as it was when it was opened; any change of it changes this."""

    path: Path
    inode: int
    bytes: int
    modified_ns: int

    @property
    def written(self) -> str:
        """The file's date, ISO 8601 in UTC."""
        return datetime.datetime.fromtimestamp(self.modified_ns // 10**9, datetime.UTC).isoformat()


@dataclass(frozen=True)
class _Opened:
    """A file that was opened and warmed up, and how to tell whether it changes."""

    model: Model
    fingerprint: _Fingerprint


class Version:
    """One opened version with its queue, its counts, and the number of requests that use it."""

    def __init__(self, name: str, version: str, opened: _Opened, settings: Settings, recorder: Recorder) -> None:
        self.name, self.version = name, version
        self.model, self.fingerprint = opened.model, opened.fingerprint
        self.file_bytes, self.written = opened.fingerprint.bytes, opened.fingerprint.written
        self.statistics = Statistics(len(self.model.classes))
        observer = recorder.observer(name, version, self.model.classes)
        self.batcher = Batcher(self.model, settings.batching, self.statistics, observer)
        self._leases = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def lease(self) -> Iterator[Version]:
        """Keep the version open while a request uses it, even when it is swapped away meanwhile."""
        self._leases += 1
        self._idle.clear()
        try:
            yield self
        finally:
            self._leases -= 1
            if not self._leases:
                self._idle.set()

    async def retire(self) -> None:
        """Close it once no request uses it any more."""
        await self._idle.wait()
        self.batcher.close()
        await self.batcher.join()


@dataclass
class _Entry:
    """One name of the repository."""

    source: Source
    versions: dict[str, Version] = field(default_factory=dict)  # the default one last
    reason: str = ""  # why it is not served
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Repository:
    """All models this server can serve, and those it does."""

    def __init__(self, sources: Iterable[Source], settings: Settings) -> None:
        self._settings = settings
        self._recorder = Recorder(settings.monitoring, settings.port)
        self._entries: dict[str, _Entry] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        for source in sources:
            if not _NAME.fullmatch(source.name):
                raise InputError(f"a model's name wants letters, digits, dots and dashes. Received: {source.name!r}")
            if source.name in self._entries:
                raise InputError(f"two models are named {source.name}; rename one (export.name in params.yaml)")
            self._entries[source.name] = _Entry(source)

    async def start(self) -> None:
        """Open every model.

        Raises:
            GraftError: one cannot be opened.
        """
        for name in self._entries:
            await self.load(name)

    async def stop(self) -> None:
        """Retire every version and write what was recorded."""
        for name in self._entries:
            await self.unload(name)
        await asyncio.gather(*self._retiring)
        await asyncio.to_thread(self._recorder.write)

    @property
    def ready(self) -> bool:
        """Whether every model that was not unloaded on purpose can answer."""
        return all(entry.versions or entry.reason == UNLOADED for entry in self._entries.values())

    @property
    def names(self) -> list[str]:
        """Every model this server can serve, loaded or not."""
        return list(self._entries)

    def versions(self, name: str | None = None) -> list[Version]:
        """All that are served, or those of one model."""
        return [
            version
            for key, entry in self._entries.items()
            for version in entry.versions.values()
            if name in (None, key)
        ]

    def get(self, name: str | None = None, version: str | None = None) -> Version:
        """The version asked for, or the newest, of `name`; no name means the only model.

        Raises:
            NotFound: there is no such model or version.
            Busy: it is known but not loaded.
            BadRequest: no name, and there are several models.
        """
        if name is None:
            if len(self._entries) != 1:
                raise BadRequest(f"name a model: {', '.join(self._entries)}")
            name = next(iter(self._entries))
        entry = self._entry(name)
        if version is not None:
            if version not in entry.versions:
                served = ", ".join(entry.versions) or "none"
                raise NotFound(f"model {name} has no version {_shown(version)}; served: {served}")
            return entry.versions[version]
        if not entry.versions:
            raise Busy(f"model {name} is not ready ({entry.reason or 'loading'})", 1)
        return next(reversed(entry.versions.values()))

    def index(self) -> list[dict[str, str]]:
        """As the repository extension lists it."""
        rows = []
        for name, entry in self._entries.items():
            for version in entry.versions:
                rows.append({"name": name, "version": version, "state": "READY", "reason": ""})
            if not entry.versions:
                rows.append({"name": name, "version": "", "state": "UNAVAILABLE", "reason": entry.reason or "loading"})
        return rows

    async def load(self, name: str) -> bool:
        """Serve what the source holds now; whether anything changed.

        New versions are opened and warmed up before they take over; requests under way finish on the old
        ones. When anything fails, what was served before is still served.

        Raises:
            NotFound: there is no such model.
            GraftError: a file cannot be opened or answers nonsense.
        """
        entry = self._entry(name)
        async with entry.lock:
            before = entry.versions
            held = {version: served.fingerprint for version, served in before.items()}
            try:
                wanted, opened = await asyncio.to_thread(self._open_changed, entry.source, held)
            except GraftError as error:
                if not before:
                    entry.reason = str(error)
                raise
            entry.versions = {
                version: Version(name, version, opened[version], self._settings, self._recorder)
                if version in opened
                else before[version]
                for version in wanted
            }
            entry.reason = ""
            self._retire(old for version, old in before.items() if entry.versions.get(version) is not old)
            for version, new in opened.items():
                logger.info("model %s version %s is ready on %s", name, version, new.model.provider)
            return bool(opened) or list(before) != list(entry.versions)

    async def unload(self, name: str) -> None:
        """Serve `name` no more; requests under way finish.

        Raises:
            NotFound: there is no such model.
        """
        entry = self._entry(name)
        async with entry.lock:
            old, entry.versions, entry.reason = entry.versions, {}, UNLOADED
            self._retire(old.values())

    async def follow(self) -> None:
        """Load what changed in the sources every `follow_seconds`, for as long as the server runs."""
        while True:
            await asyncio.sleep(self._settings.follow_seconds)
            for name, entry in self._entries.items():
                if entry.reason == UNLOADED:
                    continue
                try:
                    await self.load(name)
                except GraftError as error:
                    logger.error("model %s stays as it was: %s", name, error)

    async def record(self) -> None:
        """Write the recorded traffic now and then, for as long as the server runs."""
        while True:
            await asyncio.sleep(self._settings.monitoring.write_seconds)
            await asyncio.to_thread(self._recorder.write)

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise NotFound(f"there is no model {_shown(name)}; served: {', '.join(self._entries)}") from None

    def _open_changed(self, source: Source, held: Mapping[str, object]) -> tuple[list[str], dict[str, _Opened]]:
        """All versions of `source`, and those opened because they are not `held` as they are now."""
        wanted = source.versions()
        opened = {}
        for version, path in wanted.items():
            fingerprint = _fingerprint(path)
            if held.get(version) != fingerprint:
                model = open_model(path, self._settings.provider, self._settings.threads)
                _warm_up(model, self._settings.batching.max_batch_size)
                opened[version] = _Opened(model, fingerprint)
        return list(wanted), opened

    def _retire(self, versions: Iterable[Version]) -> None:
        for version in versions:
            task = asyncio.get_running_loop().create_task(version.retire())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)


def _warm_up(model: Model, largest: int) -> None:
    """Run one picture and, where that is quick, the largest batch: first requests find memory in place."""
    started = time.monotonic()
    probabilities = model.predict(np.zeros((1, *model.image_size, 3), np.uint8))
    if not np.isfinite(probabilities).all() or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-2):
        raise GraftError(f"{model.path} answers a black picture with no probabilities; export it again")
    if (time.monotonic() - started) * largest < WARM_UP_SECONDS:
        model.predict(np.zeros((largest, *model.image_size, 3), np.uint8))


def _fingerprint(path: Path) -> _Fingerprint:
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"there is no model at {path} ({error.strerror}); `graft run` makes one") from error
    return _Fingerprint(path, status.st_ino, status.st_size, status.st_mtime_ns)


def _shown(name: str) -> str:
    """A name from a request, short enough to be repeated in an answer."""
    return name if len(name) <= 64 else f"{name[:61]}…"
