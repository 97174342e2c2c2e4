"""The files of a folder, a zip or a tar, as names and a way to read each: bounded, and nothing outside is followed.

In: a path that a stranger may have filled. Out: `Files`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from graft import images
from graft.datasets import archives
from graft.images import UnreadableImage


@dataclass(frozen=True)
class Files:
    """Names with `/` between folders; `read` gives a file's bytes or raises `UnreadableImage` or `OSError`."""

    names: list[str]
    read: Callable[[str], bytes]


def open_files(path: Path, scratch: Path, stack: contextlib.ExitStack) -> Files | None:
    """Open `path`; a tar is unpacked into `scratch`, a zip stays open until `stack` closes. None for other files.

    Raises:
        InputError: the archive is damaged, or a name in it leads out of it.
        OSError: the folder or file cannot be read.
    """
    if path.is_dir():
        return in_folder(path)
    if not archives.is_archive(path):
        return None
    if path.suffix.lower() == ".zip":
        return _in_zip(path, stack)
    return in_folder(scratch, archives.unpack_tar(path, scratch, images.MAX_BYTES))


def pictures(names: Sequence[str]) -> list[str]:
    """Those that are meant to be pictures; macOS's shadow folders hold none."""
    return [name for name in names if images.is_picture_name(name) and "__MACOSX" not in name]


def in_folder(root: Path, too_large: Sequence[str] = ()) -> Files:
    """The files below `root`, and the names of `too_large` ones that were left out of it."""
    # A link inside the folder could lead anywhere, also in a circle.
    found = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    refused = set(too_large)

    def read(name: str) -> bytes:
        if name in refused or (root / name).stat().st_size > images.MAX_BYTES:
            raise UnreadableImage(f"more than {images.MAX_BYTES >> 20} MiB")
        return (root / name).read_bytes()

    return Files([path.relative_to(root).as_posix() for path in found] + list(too_large), read)


def _in_zip(path: Path, stack: contextlib.ExitStack) -> Files:
    archive = stack.enter_context(archives.open_zip(path))
    infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}

    def read(name: str) -> bytes:
        # The size in the directory may lie, so that what is read is bounded too.
        if infos[name].file_size > images.MAX_BYTES:
            raise UnreadableImage(f"more than {images.MAX_BYTES >> 20} MiB")
        try:
            with archive.open(infos[name]) as file:
                return file.read(images.MAX_BYTES)
        except Exception as error:  # zipfile and zlib raise many kinds on damaged members
            raise UnreadableImage(f"damaged in the archive ({error})") from error

    return Files(list(infos), read)
