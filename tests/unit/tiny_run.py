"""The stages that train, one after another on the tiny data set."""

from __future__ import annotations

from pathlib import Path

from graft import adaptation, features, heads, params, runtime


def run_stages(settings: params.Params, prepared: Path, folder: Path) -> None:
    """What the tasks do, each from a fresh start: `folder` gets `features`, `head` and `finetuned`."""
    runtime.start(settings)
    features.extract(settings, prepared, folder / "features")
    runtime.start(settings)
    heads.train(settings, prepared, folder / "features", folder / "head")
    runtime.start(settings)
    adaptation.finetune(settings, prepared, folder / "features", folder / "head", folder / "finetuned")
