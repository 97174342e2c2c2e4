"""What was served, written where the retraining flow reads it: sums a day, and samples if asked for.

The files are described in `docs/serving.md`. Memory and disk are bounded whatever the traffic.
"""

from __future__ import annotations

import datetime
import json
import logging
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from graft.inference import Images, Probabilities
from graft.traffic import Traffic
from serving.settings import Monitoring

logger = logging.getLogger(__name__)

KEPT_DAYS = 90


class Recorder:
    """Adds up the traffic of every version, a file for each UTC day."""

    def __init__(self, options: Monitoring, port: int) -> None:
        self._options = options
        self._port = port  # two servers on one machine write files of their own
        self._lock = threading.Lock()
        self._sums: dict[Path, Traffic] = {}
        self._sampled = 0

    def observer(
        self, name: str, version: str, classes: Sequence[str]
    ) -> Callable[[Images, Probabilities], None] | None:
        """What a batcher calls after each run; None when nothing is recorded."""
        if self._options.folder is None and self._options.sample_folder is None:
            return None

        def observe(images: Images, probabilities: Probabilities) -> None:
            if self._options.folder is not None:
                self._add(self._options.folder / name / version, classes, images, probabilities)
            if self._options.sample_folder is not None:
                self._sample(self._options.sample_folder / name, classes, images, probabilities)

        return observe

    def write(self) -> None:
        """Write the sums of today and forget those of days gone by."""
        with self._lock:
            documents = {path: traffic.as_json() for path, traffic in self._sums.items()}
            today = _today()
            self._sums = {path: traffic for path, traffic in self._sums.items() if path.name.startswith(today)}
        for path, document in documents.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(".partial")
                partial.write_text(json.dumps(document), encoding="utf-8")
                partial.replace(path)
                for old in sorted(path.parent.glob("*.json"))[:-KEPT_DAYS]:
                    old.unlink(missing_ok=True)
            except OSError as error:
                logger.error("the traffic could not be written to %s: %s", path, error)

    def _add(self, folder: Path, classes: Sequence[str], images: Images, probabilities: Probabilities) -> None:
        path = folder / f"{_today()}.{self._port}.json"
        with self._lock:
            if path not in self._sums:
                self._sums[path] = _read(path, classes)
            self._sums[path].add(images, probabilities)

    def _sample(self, folder: Path, classes: Sequence[str], images: Images, probabilities: Probabilities) -> None:
        for pixels, row in zip(images, probabilities, strict=True):
            if random.random() >= self._options.sample_share:  # noqa: S311 - a share, no secret
                continue
            # A ring of names: the newest picture takes the oldest one's place.
            with self._lock:
                slot = self._sampled % self._options.sample_limit
                self._sampled += 1
            try:
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / f"{slot:06d}.png")
                label = {"class": classes[int(row.argmax())], "confidence": float(row.max())}
                (folder / f"{slot:06d}.json").write_text(json.dumps(label), encoding="utf-8")
            except OSError as error:
                logger.error("a sample could not be written to %s: %s", folder, error)


def _read(path: Path, classes: Sequence[str]) -> Traffic:
    """What an earlier server of the same day wrote, or nothing yet."""
    empty = Traffic(classes)
    try:
        empty.merge(Traffic.from_json(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        logger.error("%s cannot be read (%s); its sums start again", path, error)
    return empty


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()
