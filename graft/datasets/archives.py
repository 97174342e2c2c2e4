"""Reading zip and tar archives that strangers made: nothing leaves the folder, nothing is followed.

In: an archive. Out: the names of its files and their bytes, or an unpacked temporary folder.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from graft.errors import InputError


def is_archive(path: Path) -> bool:
    """Whether `path` is a file that `open_zip` or `unpack_tar` reads."""
    return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip whose every name stays inside it.

    Raises:
        InputError: the file is damaged, or a name is absolute, climbs with `..` or is a link.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a readable zip archive ({error}); fetch or pack it again") from error
    _refuse_unsafe(path, (info.filename for info in archive.infolist()))
    links = [info.filename for info in archive.infolist() if (info.external_attr >> 28) == 0o12]
    if links:
        raise InputError(f"{path} holds a link ({links[0]}); pack the files themselves")
    return archive


def unpack_tar(path: Path, folder: Path, max_bytes: int) -> list[str]:
    """Unpack a tar (plain or compressed) into `folder`; returns the names left out for exceeding `max_bytes`.

    Compressed tars can only be read front to back, so they are unpacked once to disk rather than sought in.

    Raises:
        InputError: the file is damaged, or a name is absolute, climbs with `..`, or is no plain file.
    """
    too_large = []
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                _refuse_unsafe(path, [member.name])
                if not (member.isfile() or member.isdir()):
                    raise InputError(f"{path} holds a link or device ({member.name}); pack the files themselves")
                if member.size > max_bytes:
                    too_large.append(member.name)
                else:
                    archive.extract(member, folder, filter="data")
    except (OSError, EOFError, tarfile.TarError) as error:
        raise InputError(f"{path} is not a readable tar archive ({error}); fetch or pack it again") from error
    return too_large


def _refuse_unsafe(path: Path, names: Iterable[str]) -> None:
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if ".." in parts or name.startswith(("/", "\\")) or ":" in (parts[0] if parts else ""):
            raise InputError(f"{path} holds a name that leaves the archive ({name}); pack it again without it")
