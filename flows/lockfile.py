"""dvc.lock, written whole or not at all, and at the same cost however long it is.

DVC parses and prints the whole file for each stage, which in a graph of a hundred stages takes four fifths of a
stage's cost. Here the parsed file and the text of each entry are kept, and only an entry that changed is printed.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

# DVC's own: makes a text into what it says, and prints that again.
Parser = Callable[[str, Any], Any]
Dumper = Callable[[Any, TextIO], Any]

_HEAD = "stages:\n"


class LockFiles:
    """Modifies YAML files in place of `dvc.utils.serialize._common._modify_data`. For one thread at a time."""

    def __init__(self) -> None:
        self._known: dict[Path, _Document] = {}

    @contextmanager
    def modify(self, path: Any, parser: Parser, dumper: Dumper, fs: Any = None) -> Iterator[Any]:
        """Yield what the file says, to be changed, and write it. `fs` is DVC's, always the local one here."""
        file = Path(os.path.realpath(os.fspath(path)))
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        document = self._known.pop(file, None)
        if document is None or document.text != text:
            document = _Document(text, parser(text, path) if text else {}, dumper, by_entry=file.suffix == ".lock")
        yield document.content
        write_atomically(file, document.printed())
        self._known[file] = document


class _Document:
    """A file as it was last read or written.

    It is printed by entry only where that gives, letter by letter, the text it was read from: what people wrote
    by hand (comments, another layout) is left to DVC.
    """

    def __init__(self, text: str, content: Any, dumper: Dumper, *, by_entry: bool) -> None:
        self.text = text
        self.content = content
        self._dumper = dumper
        self._entries: dict[str, tuple[object, str]] = {}
        self._by_entry = by_entry and (not text or self._joined() == text)

    def printed(self) -> str:
        """Its text now."""
        self.text = self._joined() if self._by_entry else self._dumped(self.content)
        return self.text

    def _joined(self) -> str:
        parts = []
        for key, value in self.content.items():
            if key == "stages" and value:
                parts += [_HEAD, *(self._entry(name, entry) for name, entry in value.items())]
            else:
                parts.append(self._dumped({key: value}))
        return "".join(parts)

    def _entry(self, name: str, entry: object) -> str:
        """The lines of a stage; DVC never changes an entry but puts a new one in its place."""
        known, text = self._entries.get(name, (None, ""))
        if known is not entry:
            text = self._dumped({"stages": {name: entry}}).removeprefix(_HEAD)
            self._entries[name] = (entry, text)
        return text

    def _dumped(self, content: Any) -> str:
        stream = io.StringIO()
        self._dumper(content, stream)
        return stream.getvalue()


def write_atomically(file: Path, text: str) -> None:
    """Write beside `file` and rename: DVC truncates in place, which `kill -9` can cut short."""
    temporary = beside(file)  # one writer at a time: DVC's lock is held
    try:
        temporary.write_text(text, encoding="utf-8")
        if file.exists():
            temporary.chmod(file.stat().st_mode & 0o777)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def beside(file: Path) -> Path:
    """Where a new `file` is written first; a run that was killed meanwhile leaves it there."""
    return file.with_name(f".{file.name}.graft")
