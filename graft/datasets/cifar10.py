"""CIFAR-10's official binary archive: downloaded with its checksum to a cache, or a local copy.

Format (https://www.cs.toronto.edu/~kriz/cifar.html): `data_batch_{1..5}.bin` and `test_batch.bin` of records
of 1 label byte and 3072 pixel bytes, channel by channel; class names in `batches.meta.txt`.
"""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graft import progress
from graft.datasets import archives
from graft.errors import GraftError, InputError
from graft.images import Pixels

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # published beside the archive
CACHE = Path.home() / ".cache" / "graft"
RECORD = 1 + 32 * 32 * 3
TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class Batches:
    """The memory-mapped records of all batch files, training first."""

    classes: list[str]
    files: list[tuple[str, str, npt.NDArray[np.uint8]]]

    def records(self) -> Iterator[tuple[str, int, int, str]]:
        """Batch name, row, label and split of every record."""
        for name, split, rows in self.files:
            for row, label in enumerate(rows[:, 0].tolist()):
                yield name, row, label, split

    def pixels(self, index: int) -> Pixels:
        """Record `index` as 32×32×3 RGB."""
        for _, _, rows in self.files:
            if index < len(rows):
                return np.array(rows[index, 1:].reshape(3, 32, 32).transpose(1, 2, 0))
            index -= len(rows)
        raise IndexError(index)


def open_batches(path: Path, scratch: Path) -> Batches:
    """Open a local archive or unpacked folder at `path`, or the download where there is none.

    Raises:
        InputError: what is at `path` is not CIFAR-10's binary version.
        GraftError: it has to be downloaded and cannot be.
    """
    if path.is_dir() and not any(path.rglob("*.bin")):
        path = download()
    if path.is_file():
        archives.unpack_tar(path, scratch, max_bytes=2**30)
        path = scratch
    elif not path.is_dir():
        raise InputError(f"data.path does not exist; set it to cifar-10-binary.tar.gz. Received: {path}")
    return _map(path)


def download(url: str = URL, md5: str = MD5, cache: Path = CACHE) -> Path:
    """Fetch the archive to `cache` unless it is there; it appears only when its checksum is right.

    Raises:
        GraftError: the network or the checksum fails; the message says how to bring the file.
    """
    target = cache / "cifar-10-binary.tar.gz"
    if target.is_file():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    mend = f"bring the file by other means and set data.path to it ({URL})"
    try:
        received = _fetch(url, partial)
    except (OSError, urllib.error.URLError) as error:
        partial.unlink(missing_ok=True)
        raise GraftError(f"CIFAR-10 cannot be downloaded ({error}); {mend}") from error
    if received != md5:
        partial.unlink()
        raise GraftError(f"the download of CIFAR-10 is damaged (MD5 {received}, not {md5}); try again, or {mend}")
    partial.replace(target)
    return target


def _fetch(url: str, path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as reply, path.open("wb") as file:  # noqa: S310
        meter = progress.Meter("download", int(reply.headers.get("Content-Length") or 0) >> 20, unit="MiB")
        while block := reply.read(2**20):
            digest.update(block)
            file.write(block)
            meter.advance(1)
    return digest.hexdigest()


def _map(root: Path) -> Batches:
    meta = next(root.rglob("batches.meta.txt"), None)
    paths = sorted(root.rglob("data_batch_*.bin")) + sorted(root.rglob("test_batch.bin"))
    if meta is None or len(paths) < 2:
        raise InputError(
            "the binary version of CIFAR-10 is wanted: data_batch_1.bin … test_batch.bin, batches.meta.txt. "
            f"Received: {', '.join(sorted(p.name for p in root.rglob('*') if p.is_file())[:5]) or 'an empty folder'}"
        )
    classes = meta.read_text(encoding="ascii").split()
    files = []
    for path in paths:
        if path.stat().st_size == 0 or path.stat().st_size % RECORD:
            raise InputError(f"{path.name} is not whole records of {RECORD} bytes; fetch the archive again")
        rows = np.memmap(path, np.uint8, "r").reshape(-1, RECORD)
        if rows[:, 0].max() >= len(classes):
            raise InputError(f"{path.name} has labels beyond its {len(classes)} class names; fetch the archive again")
        files.append((path.stem, "test" if path.stem == "test_batch" else "train", rows))
    return Batches(classes, files)
