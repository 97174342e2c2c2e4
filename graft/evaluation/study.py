"""What an evaluation reads: the prepared pictures, the features, the training's history, the exported files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.errors import InputError
from graft.shards import ShardedArray

Array = npt.NDArray[Any]

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Study:
    """The pipeline's outputs below the project folder `root`, opened when they are asked for."""

    root: Path

    @cached_property
    def dataset(self) -> dict[str, Any]:
        """`dataset.json`: classes, splits, what was quarantined."""
        found: dict[str, Any] = self._json("data/prepared/dataset.json", "prepare")
        return found

    @property
    def classes(self) -> list[str]:
        """Class names by label."""
        return list(self.dataset["classes"])

    def images(self, split: str) -> ShardedArray:
        """N×H×W×3 uint8 RGB."""
        return self._shards("data/prepared", f"{split}.images", "prepare")

    def labels(self, split: str) -> Array:
        """N int64."""
        return self._shards("data/prepared", f"{split}.labels", "prepare").read()

    def features(self, split: str) -> ShardedArray:
        """The frozen network's features at the cut, N×D; more rows than pictures where views were stored."""
        return self._shards("data/features", f"{split}.features", "extract")

    def names(self, split: str) -> list[str]:
        """The file each row came from."""
        return self._text(f"data/prepared/{split}.names.txt", "prepare").splitlines()

    def history(self, part: str) -> list[dict[str, Any]]:
        """Epochs of `head` or `finetuned`; empty where that training had none."""
        stage = "train" if part == "head" else "finetune"
        return list(self._json(f"models/{part}/history.json", stage)["epochs"])

    @cached_property
    def exported(self) -> dict[str, dict[str, Any]]:
        """The shipped precisions of `export.json`: file, bytes, accuracy, agreement, difference from Keras."""
        found: dict[str, dict[str, Any]] = self._json("models/onnx/export.json", "export")["precisions"]
        return {name: facts for name, facts in found.items() if facts.get("shipped", True)}

    @property
    def left_out(self) -> dict[str, str]:
        """Precisions that were made and not shipped, and why."""
        found: dict[str, dict[str, Any]] = self._json("models/onnx/export.json", "export")["precisions"]
        return {name: facts["reason"] for name, facts in found.items() if not facts.get("shipped", True)}

    @property
    def temperature(self) -> float | None:
        """What the exported files divide their logits by, None where nothing is inside."""
        found: float | None = self._json("models/onnx/export.json", "export").get("temperature")
        return found

    def model_file(self, precision: str) -> Path:
        """Where the exported file of `precision` lies."""
        return self.root / "models/onnx" / Path(self.exported[precision]["file"]).name

    @property
    def head(self) -> Path:
        """The head trained on frozen features."""
        return self.root / "models/head/head.safetensors"

    def _json(self, path: str, stage: str) -> Any:
        try:
            return json.loads(self._text(path, stage))
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is not JSON; run the {stage} stage again. Received: {error}") from None

    def _text(self, path: str, stage: str) -> str:
        try:
            return (self.root / path).read_text(encoding="utf-8")
        except OSError:
            raise InputError(f"{path} is missing; run the {stage} stage first (graft run)") from None

    def _shards(self, folder: str, name: str, stage: str) -> ShardedArray:
        try:
            return ShardedArray(self.root / folder, name)
        except FileNotFoundError:
            raise InputError(f"{folder} holds no {name}; run the {stage} stage first (graft run)") from None


def first_rows(array: ShardedArray, rows: int, size: int) -> Iterator[Array]:
    """Batches of `size` of the first `rows` rows."""
    for start in range(0, rows, size):
        yield array.take(np.arange(start, min(start + size, rows)))
