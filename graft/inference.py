"""An exported file opened with ONNX Runtime: uint8 pictures in, probabilities out.

Evaluation, serving and the command line all open files here, so the provider rule and the checks of
`docs/model-file.md` are written once. Imports numpy and ONNX Runtime only.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnxruntime

from graft.errors import GraftError, InputError, nearest

Provider = Literal["auto", "cuda", "cpu"]
Images = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]

INPUT, OUTPUT = "image", "probabilities"
FORMAT = "1"

_FULL_NAMES = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
_JSON_KEYS = ("classes", "image_size", "metrics", "reference", "provenance")
_ERRORS_ONLY = 3


@dataclass(frozen=True)
class Model:
    """One opened file. `predict` may be called from several threads."""

    path: Path
    session: onnxruntime.InferenceSession
    provider: str  # "cuda" or "cpu": the one really in use
    metadata: Mapping[str, Any]  # the keys of docs/model-file.md without their prefix, JSON values parsed

    @property
    def name(self) -> str:
        """The model's name as exported."""
        return str(self.metadata["name"])

    @property
    def classes(self) -> list[str]:
        """Names in the order of the probabilities."""
        return list(self.metadata["classes"])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        height, width = self.metadata["image_size"]
        return height, width

    def predict(self, images: Images) -> Probabilities:
        """Probabilities, N×C float32, of `images`, N×H×W×3 uint8 RGB, all in one run: callers batch.

        Raises:
            InputError: the images have another type or shape.
            GraftError: ONNX Runtime failed, for want of memory for instance.
        """
        expected = (*self.image_size, 3)
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise InputError(
                f"{self.name} wants uint8 images of shape N×{'×'.join(map(str, expected))}. "
                f"Received: {images.dtype} {'×'.join(map(str, images.shape))}"
            )
        try:
            (probabilities,) = self.session.run([OUTPUT], {INPUT: images})
        except Exception as error:  # ONNX Runtime's errors share no narrower base
            raise GraftError(
                f"{self.path}: ONNX Runtime failed on {len(images)} images ({_line(error)})"
            ) from error
        return np.asarray(probabilities)


def open_model(path: Path, provider: str = "auto", threads: int = 0) -> Model:
    """Open `path` on `provider` and check that it is a file as `docs/model-file.md` describes.

    `auto` is CUDA where an NVIDIA driver answers and ONNX Runtime has CUDA built in, else the CPU. Whatever
    was chosen must come up: nothing falls back unseen. `threads` bounds one run; 0 takes every core.

    Raises:
        InputError: the file is missing, damaged or no model of Graft's, or the provider has no such name.
        GraftError: the provider does not come up on this machine.
    """
    if not path.is_file():
        raise InputError(f"there is no model at {path}; `graft run` makes one")
    chosen = choose_provider(provider)
    if chosen == "cuda":
        # The CUDA and cuDNN libraries of the pip wheels are on no search path of the loader.
        onnxruntime.preload_dlls()
    session = _open_session(path, chosen, threads)
    _check_provider(session, chosen)
    metadata = _read_metadata(path, session)
    _check_signature(path, session, metadata)
    return Model(path, session, chosen, metadata)


def choose_provider(provider: str) -> str:
    """`cuda` or `cpu` for what was asked (`auto`, `cuda`, `cpu`), before any session is opened.

    Raises:
        InputError: the provider has no such name.
        GraftError: CUDA was asked for and the machine or the ONNX Runtime build has none.
    """
    names = get_args(Provider)
    if provider not in names:
        raise InputError(
            f"the provider must be {', '.join(names)}; {nearest(provider, names)}. Received: {provider}"
        )
    if provider == "cpu":
        return "cpu"
    # ONNX Runtime lists CUDA as available wherever it was compiled in, GPU or not: ask the driver as well.
    built_in = _FULL_NAMES["cuda"] in onnxruntime.get_available_providers()
    present = _driver_counts_gpus() > 0
    if built_in and present:
        return "cuda"
    if provider == "auto":
        return "cpu"
    lacking = (
        "no NVIDIA GPU answers on this machine"
        if built_in
        else "this ONNX Runtime has no CUDA; install onnxruntime-gpu"
    )
    raise GraftError(f"provider cuda was asked for, but {lacking}; or ask for cpu")


def _driver_counts_gpus() -> int:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def _open_session(path: Path, provider: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    # Given explicitly, ONNX Runtime leaves the threads unpinned, which other work on the cores needs.
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[_FULL_NAMES[provider]])
    except Exception as error:  # ONNX Runtime's errors share no narrower base
        raise InputError(
            f"{path} is damaged or no ONNX file; make it again (ONNX Runtime says: {_line(error)})"
        ) from error


def _check_provider(session: onnxruntime.InferenceSession, asked: str) -> None:
    in_use = session.get_providers()[0]
    if in_use != _FULL_NAMES[asked]:
        raise GraftError(
            f"provider {asked} was asked for, but ONNX Runtime came up with {in_use}; "
            "`graft doctor` says what is missing, or ask for cpu"
        )


def _read_metadata(path: Path, session: onnxruntime.InferenceSession) -> dict[str, Any]:
    raw = session.get_modelmeta().custom_metadata_map
    metadata: dict[str, Any] = {
        key.removeprefix("graft."): value for key, value in raw.items() if key.startswith("graft.")
    }
    try:
        for key in _JSON_KEYS:
            if key in metadata:
                metadata[key] = json.loads(metadata[key])
    except ValueError as error:
        raise InputError(
            f"{path}: graft.{key} in the metadata is not JSON ({error}); export it again"
        ) from error
    missing = [key for key in ("format", "name", "classes", "image_size", "precision") if key not in metadata]
    if missing:
        raise InputError(
            f"{path} lacks the metadata {', '.join(f'graft.{key}' for key in missing)}; "
            "only files exported by Graft can be used"
        )
    if metadata["format"] != FORMAT:
        raise InputError(f"{path} has graft.format {metadata['format']}, this reads {FORMAT}; update Graft")
    if not _list_of(str, metadata["classes"]) or len(set(metadata["classes"])) != len(metadata["classes"]):
        raise InputError(
            f"{path}: graft.classes must list different names. Received: {metadata['classes']!r}"
        )
    if not _list_of(int, metadata["image_size"]) or len(metadata["image_size"]) != 2:
        raise InputError(
            f"{path}: graft.image_size must be [height, width]. Received: {metadata['image_size']!r}"
        )
    return metadata


def _list_of(kind: type, value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _check_signature(path: Path, session: onnxruntime.InferenceSession, metadata: Mapping[str, Any]) -> None:
    inputs = {node.name: (node.type, list(node.shape)[1:]) for node in session.get_inputs()}
    outputs = {node.name: (node.type, list(node.shape)[1:]) for node in session.get_outputs()}
    wanted_inputs = {INPUT: ("tensor(uint8)", [*metadata["image_size"], 3])}
    wanted_output = ("tensor(float)", [len(metadata["classes"])])
    if inputs != wanted_inputs or outputs.get(OUTPUT) != wanted_output:
        raise InputError(
            f"{path}: inputs and outputs do not match its metadata; wanted {wanted_inputs} and "
            f"{ {OUTPUT: wanted_output} }. Received: {inputs} and {outputs}"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
