"""Every knob of the pipeline as one typed, frozen object.

In: `params.yaml`. Out: `Params`, passed down explicitly. Unknown keys and wrong values are refused with
the nearest valid name; `override` edits the file's text and keeps its comments.
"""

from __future__ import annotations

import io
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from graft.errors import InputError, nearest

FILE = Path("params.yaml")

Fraction = Annotated[float, Field(gt=0, lt=0.5)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, le=10)]
Mixup = Annotated[float, Field(ge=0, le=10)]


def _fp32_first(names: tuple[str, ...]) -> tuple[str, ...]:
    return _led_by("fp32", names)


def _probabilities_first(names: tuple[str, ...]) -> tuple[str, ...]:
    return _led_by("probabilities", names)


def _led_by(first: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Order does not count to a person, who must not leave out `first` or name anything twice."""
    if first not in names or len(set(names)) != len(names):
        raise ValueError(f"should hold {first} and each name once")
    return (first, *(name for name in names if name != first))


class Section(BaseModel):
    """A frozen group of parameters that knows no others."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(Section):
    """Where pictures come from and how they are split."""

    source: Literal["digits", "cifar10", "folder"]
    path: str
    image_size: Annotated[int, Field(ge=32, le=1024)]
    validation_fraction: Fraction
    test_fraction: Fraction
    limit_per_class: Positive | None
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)]


class Backbone(Section):
    """The pretrained network and where its features are cut."""

    name: str
    weights: str
    width: Annotated[float, Field(gt=0, le=1)]
    layer: str


class Features(Section):
    """How the frozen network's activations are stored."""

    pooling: Literal["flatten", "avg", "max"]
    views: Annotated[int, Field(ge=1, le=64)]
    augmentation: tuple[Literal["auto", "flip", "shift", "crop", "colour"], ...] = Field(strict=False)
    dtype: Literal["float16", "float32"]
    batch_size: Positive


class Head(Section):
    """The new classifier and its training."""

    hidden: tuple[Positive, ...] = Field(strict=False, max_length=3)
    dropout: Share
    weight_decay: Annotated[float, Field(ge=0, lt=1)]
    label_smoothing: Share
    class_weights: Literal["none", "balanced"]
    mixup: Mixup
    epochs: Positive
    batch_size: Positive
    learning_rate: Rate
    schedule: Literal["cosine", "one-cycle"]
    gradient_norm: Annotated[float, Field(gt=0)] | None
    patience: Positive


class Finetune(Section):
    """How the last layers are trained at a lower rate."""

    unfreeze_from: str
    epochs: Annotated[int, Field(ge=0)]
    gradual_epochs: Annotated[int, Field(ge=0)]
    batch_size: Positive
    learning_rate: Rate
    block_decay: Annotated[float, Field(gt=0, le=1)]
    mixup: Mixup


class Export(Section):
    """The exported files and the bounds they must hold."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    precisions: Annotated[tuple[Literal["fp32", "fp16", "int8"], ...], AfterValidator(_fp32_first)] = Field(
        strict=False
    )
    outputs: Annotated[
        tuple[Literal["probabilities", "logits", "features"], ...], AfterValidator(_probabilities_first)
    ] = Field(strict=False)
    resize: bool
    calibrate: bool
    calibration_images: Annotated[int, Field(ge=32, le=10000)]
    max_difference: Annotated[float, Field(gt=0, lt=1)]
    max_difference_fp16: Annotated[float, Field(gt=0, lt=1)]
    max_accuracy_loss: Share


class Evaluate(Section):
    """What is measured on the exported file, and how much time that may take."""

    batch_size: Positive
    baselines: tuple[Literal["pixels", "random"], ...] = Field(strict=False)
    calibration_images: Positive
    corruption_images: Annotated[int, Field(ge=0)]
    precision_images: Positive
    gallery: Annotated[int, Field(ge=1, le=48)]
    map: Literal["pca", "tsne"]
    map_images: Annotated[int, Field(ge=0, le=2000)]
    near_duplicate: Annotated[float, Field(ge=0.8, le=1)]


class Gate(Section):
    """What a new model must show before it goes live."""

    min_accuracy: Annotated[float, Field(ge=0, le=1)]
    min_class_recall: Annotated[float, Field(ge=0, le=1)]
    max_class_drop: Annotated[float, Field(ge=0, le=1)]
    min_gain: Annotated[float, Field(ge=0, le=1)]
    significance: Annotated[float, Field(gt=0, le=0.5)]


class Retrain(Section):
    """How a retraining looks at new data, where its versions go, and who is told."""

    max_shrink: Annotated[float, Field(ge=0, le=1)]
    max_champion_drop: Annotated[float, Field(ge=0, le=1)]
    max_psi: Annotated[float, Field(gt=0)]
    min_drift_p: Annotated[float, Field(gt=0, lt=1)]
    drift_images: Positive
    drift_days: Positive
    require_approval: bool
    approval_hours: Annotated[float, Field(gt=0, le=24 * 30)]
    branch: str | None
    git_remote: str | None
    servers: tuple[str, ...] = Field(strict=False)
    webhook: str | None


class Runtime(Section):
    """What the machine gives."""

    threads: Annotated[int, Field(ge=0, le=1024)]
    devices: Annotated[int, Field(ge=0, le=64)]
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"]


class Params(Section):
    """The whole of `params.yaml`."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    data: Data
    backbone: Backbone
    features: Features
    head: Head
    finetune: Finetune
    export: Export
    evaluate: Evaluate
    gate: Gate
    retrain: Retrain
    runtime: Runtime


def load(path: Path = FILE) -> Params:
    """Read and check the parameters.

    Raises:
        InputError: the file is missing, is not YAML, or a value is unknown, missing or out of range.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); run inside a Graft project") from error
    return parse(text, str(path))


def parse(text: str, origin: str = str(FILE)) -> Params:
    """Check the YAML `text` of the parameters; `origin` names it in errors."""
    return _validate(_yaml_load(text, origin), origin)


def override(text: str, assignments: Iterable[str]) -> str:
    """Return `text` with each `key=value` of `assignments` applied, comments and order kept.

    Values are YAML, as in `dvc exp run -S`. The result is checked as a whole before it is returned.

    Raises:
        InputError: an assignment has no `=`, names an unknown key, or its value is of the wrong type.
    """
    yaml = _yaml()
    document = _yaml_load(text, str(FILE))
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator:
            raise InputError(f"-S wants key=value, such as -S data.source=folder. Received: {assignment}")
        _check_key(key)
        *sections, name = key.split(".")
        target = document
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = _yaml_load(value, f"-S {key}")
    _validate(document, "-S")
    out = io.StringIO()
    yaml.dump(document, out)
    return out.getvalue()


def write(path: Path, text: str) -> None:
    """Replace the file at once: a reader sees the old text or the new, never half of it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def keys(model: type[BaseModel] = Params, prefix: str = "") -> list[str]:
    """All dotted names a parameter can have."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        inner = _section(field.annotation)
        names += keys(inner, f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return names


def _check_key(key: str) -> None:
    valid = keys()
    if key not in valid:
        raise InputError(f"params.yaml has no key {key}; {nearest(key, valid)}")


def _section(annotation: Any) -> type[BaseModel] | None:
    candidates = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _validate(document: Any, origin: str) -> Params:
    if not isinstance(document, dict):
        raise InputError(f"{origin} must hold sections of parameters. Received: {type(document).__name__}")
    try:
        return Params.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{origin}: {_sentence(error)}") from None


def _sentence(error: ValidationError) -> str:
    # A misspelt key is both unknown and missing: its own spelling is the better hint.
    first = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    # Members of a union carry their type's name in the location; a person knows only the key.
    valid = keys()
    parts = [str(part) for part in first["loc"]]
    key = next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in valid), ".".join(parts))
    if first["type"] == "extra_forbidden":
        return f"there is no key {key}; {nearest(key, valid)}"
    if first["type"] == "missing":
        return f"the key {key} is missing; add it (README.md lists the defaults)"
    message = first["msg"].removeprefix("Input ")
    return f"{key} {message[0].lower()}{message[1:]}. Received: {first['input']!r}"


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096  # long comments stay on their line
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def _yaml_load(text: str, origin: str) -> Any:
    from ruamel.yaml.error import YAMLError

    try:
        return _yaml().load(text)
    except YAMLError as error:
        reason = str(error).replace("\n", " ")
        raise InputError(f"{origin} is not valid YAML: {reason}") from error
