"""The stage `evaluate` from end to end: open the exported files, measure, write metrics, plots and the page.

Writes `metrics.json`, `plots/` and `data/evaluation/`, which hold no clock and no commit and so are the same for
the same inputs; then `report/`, the page made from them and from what only this machine and moment know.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from graft import report
from graft.errors import InputError
from graft.evaluation import speed
from graft.evaluation.album import encode
from graft.evaluation.plots import write_json, write_plots
from graft.evaluation.stage import Findings, evaluate
from graft.evaluation.study import Study
from graft.inference import Model, open_model
from graft.params import Params
from graft.shards import write

METRICS = Path("metrics.json")
PLOTS = Path("plots")
FOLDER = Path("data/evaluation")
SPEED = Path("report/speed.json")
MAIN = "fp32"  # the file whose findings are reported


def run(settings: Params, root: Path) -> None:
    """Evaluate what was exported in the project folder `root`.

    Raises:
        InputError: an input is missing, or the file and the pictures do not belong together.
        GraftError: the file's output is no probabilities.
    """
    study = Study(root)
    models = open_models(study, settings)
    findings = evaluate(study, models[MAIN].predict, settings)
    findings.record["model"] = _describe(models)
    _write(study, findings)
    _measure_speed(study, models)
    report.write(root)


def measure_again(settings: Params, root: Path) -> None:
    """Measure the speed of the evaluated files again, on a machine that got them from elsewhere for instance.

    Raises:
        InputError: nothing was evaluated yet, or the files are not here.
    """
    study = Study(root)
    _measure_speed(study, open_models(study, settings))


def _measure_speed(study: Study, models: Mapping[str, Model]) -> None:
    """Time the opened files on this machine; the figures and the files' sums are kept for the page."""
    images = study.images("test")
    pictures = images.take(np.arange(min(speed.BATCH, len(images))))
    figures = speed.measure({name: model.predict for name, model in models.items()}, pictures)
    speed.save(study.root / SPEED, _sums(models), models[MAIN].provider, figures)


def files(study: Study) -> dict[str, Path]:
    """The shipped files by precision."""
    names = list(study.exported)
    if MAIN not in names:
        raise InputError(
            f"models/onnx holds no {MAIN} file; run the export stage. Received: {', '.join(names) or 'none'}"
        )
    return {name: study.model_file(name) for name in names}


def open_models(study: Study, settings: Params) -> dict[str, Model]:
    """Every shipped file, opened, and seen to fit the prepared pictures.

    Raises:
        InputError: the classes or the size of the pictures differ from the file's.
    """
    models = {
        name: open_model(path, provider="auto", threads=settings.runtime.threads) for name, path in files(study).items()
    }
    height, width = study.images("test").row_shape[:2]
    for name, model in models.items():
        if model.classes != study.classes or tuple(model.image_size) != (height, width):
            raise InputError(
                f"{study.model_file(name).name} was made for other pictures than data/prepared holds; run the export "
                f"stage again. Received: {len(model.classes)} classes at {model.image_size[0]} pixels for "
                f"{len(study.classes)} classes at {height}"
            )
    return models


def _describe(models: Mapping[str, Model]) -> dict[str, object]:
    main = models[MAIN]
    return {
        "name": main.name,
        "image_size": list(main.image_size),
        "provenance": main.metadata["provenance"],
        "files": _sums(models),
    }


def _sums(models: Mapping[str, Model]) -> dict[str, str]:
    return {name: hashlib.sha256(model.path.read_bytes()).hexdigest() for name, model in models.items()}


def _write(study: Study, findings: Findings) -> None:
    root, record = study.root, findings.record
    write_json(root / METRICS, record["metrics"])
    write_plots(root / PLOTS, record, study.labels("test"), findings.probabilities.argmax(axis=1))
    folder = root / FOLDER
    write_json(folder / "evaluation.json", record, indent=None)
    write(folder / "test.probabilities-00000.npy", findings.probabilities)
    splits = {split: study.images(split) for split in ("train", "validation", "test")}
    sheet = findings.album.sheet(splits, record["pictures"]["tile"])
    (folder / "pictures.webp").write_bytes(encode(sheet))
    (folder / "summary.md").write_text(report.markdown(record), encoding="utf-8")
