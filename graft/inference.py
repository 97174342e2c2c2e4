"""An exported file opened with ONNX Runtime: uint8 pictures in, probabilities out.

Evaluation, serving and the command line all open files here, so the provider rule and the checks of
`docs/model-file.md` are written once. Imports numpy and ONNX Runtime only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from graft import checksum, providers
from graft.errors import GraftError, InputError

Images = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]

INPUT, OUTPUT = "image", "probabilities"
FORMAT = "1"

SUMMARY = "export.json"

_JSON_KEYS = ("classes", "image_size", "input", "metrics", "quantisation", "reference", "temperature", "provenance")
_ERRORS_ONLY = 3
SPIN_MICROSECONDS = "100"


@dataclass(frozen=True)
class Model:
    """One opened file. `predict` may be called from several threads."""

    path: Path
    session: onnxruntime.InferenceSession
    provider: str  # "tensorrt", "cuda" or "cpu": the one really in use
    metadata: Mapping[str, Any]  # the keys of docs/model-file.md without their prefix, JSON values parsed
    note: str = ""  # why `auto` took no better provider though there is a GPU
    cuda_graphs: bool = False
    core: int | None = None  # where the thread that calls computes, the session's own threads having the other cores

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
        """Height and width of the network's pictures in pixels; with `any_size` others are scaled inside."""
        height, width = self.metadata["image_size"]
        return height, width

    @property
    def any_size(self) -> bool:
        """Whether pictures of any height and width go in."""
        return not isinstance(self.session.get_inputs()[0].shape[1], int)

    def predict(self, images: Images) -> Probabilities:
        """Probabilities, N×C float32, of `images`, N×H×W×3 uint8 RGB, all in one run: callers batch.

        Raises:
            InputError: the images have another type or shape.
            GraftError: ONNX Runtime failed, for want of memory for instance.
        """
        self._check(images)
        try:
            with _on_core(self.core):
                (probabilities,) = self.session.run([OUTPUT], {INPUT: images}, self._options(0))
        except Exception as error:  # ONNX Runtime's errors share no narrower base
            raise GraftError(f"{self.path}: ONNX Runtime failed on {len(images)} images ({_line(error)})") from error
        return np.asarray(probabilities)

    def _check(self, images: Images) -> None:
        height, width = images.shape[1:3] if self.any_size and images.ndim == 4 else self.image_size
        if images.dtype != np.uint8 or images.shape[1:] != (height, width, 3) or 0 in (height, width):
            wanted = "N×H×W×3" if self.any_size else f"N×{'×'.join(map(str, (*self.image_size, 3)))}"
            raise InputError(
                f"{self.name} wants uint8 images of shape {wanted}. "
                f"Received: {images.dtype} {'×'.join(map(str, images.shape))}"
            )

    def _options(self, batch: int) -> onnxruntime.RunOptions | None:
        """Which CUDA graph a run replays: one for each fixed batch, none (-1) for a batch that may be of any size."""
        if not self.cuda_graphs:
            return None
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(batch or -1))
        return options


class Bound:
    """A model with a fixed batch whose buffers stay on its device: nothing is allocated, copies are explicit.

    `predict` is `load`, `run`, `read`; several runs may follow one load. For one thread at a time.
    """

    def __init__(self, model: Model, batch: int) -> None:
        device = "cpu" if model.provider == "cpu" else "cuda"
        shape = (batch, *model.image_size, 3)
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        self._images = make(shape, np.uint8, device, 0)
        self._probabilities = make((batch, len(model.classes)), np.float32, device, 0)
        self._binding = model.session.io_binding()
        self._binding.bind_ortvalue_input(INPUT, self._images)
        self._binding.bind_ortvalue_output(OUTPUT, self._probabilities)
        self._model, self._shape = model, shape
        self._options = model._options(batch)

    def load(self, images: Images) -> None:
        """Copy `images` (exactly the batch, N×H×W×3 uint8) to the device.

        Raises:
            InputError: another shape or type.
        """
        self._model._check(images)
        if images.shape != self._shape:
            raise InputError(f"a batch of exactly {self._shape[0]} images was bound. Received: {len(images)}")
        self._images.update_inplace(np.ascontiguousarray(images))

    def run(self) -> None:
        """Compute what was loaded."""
        self._model.session.run_with_iobinding(self._binding, self._options)

    def read(self) -> Probabilities:
        """Copy the probabilities (N×C float32) of the last run back."""
        return np.array(self._probabilities.numpy())

    def predict(self, images: Images) -> Probabilities:
        """`load`, `run` and `read`."""
        self.load(images)
        self.run()
        return self.read()


def find_file(folder: Path, provider: str = "auto", precision: str = "auto") -> Path:
    """The exported file in `folder` that suits: `auto` is fp16 where a GPU computes, fp32 on a CPU.

    Raises:
        InputError: nothing was exported there, or not in this precision.
    """
    summary = folder / SUMMARY
    if not summary.is_file():
        raise InputError(f"there is no model at {folder}; `graft run` makes one")
    found: dict[str, dict[str, Any]] = json.loads(summary.read_text(encoding="utf-8"))["precisions"]
    shipped = [name for name, facts in found.items() if facts["shipped"]]
    if precision == "auto":
        on_gpu = providers.candidates(provider)[0] != "cpu"
        precision = "fp16" if on_gpu and "fp16" in shipped else "fp32"
    if precision not in shipped:
        reason = found.get(precision, {}).get("reason", "export.precisions does not name it")
        raise InputError(f"no {precision} file was shipped ({reason}); choose {', '.join(shipped)}")
    return folder / str(found[precision]["file"])


def open_model(path: Path, provider: str = "auto", threads: int = 0, cuda_graphs: bool = False) -> Model:
    """Open `path` on `provider` and check that it is a file as `docs/model-file.md` describes.

    `auto` is CUDA where it really comes up, else the CPU, and the model's `note` says why no better one. What was
    asked for by name must come up: nothing falls back unseen. `threads` bounds one run; 0 takes every core.
    `cuda_graphs` lets `Bound` replay its batch as one launch.

    Raises:
        InputError: the file is missing, damaged or no model of Graft's, or the provider has no such name.
        GraftError: the provider does not come up on this machine.
    """
    if not path.is_file():
        raise InputError(f"there is no model at {path}; `graft run` makes one")
    data = path.read_bytes()
    checksum.verify(data, str(path))
    *better, last = providers.candidates(provider)
    note = ""
    for name in better:
        try:
            return _open(path, data, name, threads, cuda_graphs, note)
        except GraftError as error:
            if isinstance(error, InputError):
                raise
            note = str(error)
    return _open(path, data, last, threads, cuda_graphs and last != "cpu", note)


def _open(path: Path, data: bytes, provider: str, threads: int, cuda_graphs: bool, note: str) -> Model:
    core = _core(threads) if provider == "cpu" else None
    if provider == "cpu":
        try:
            session = _open_session(data, [providers.FULL_NAMES["cpu"]], threads, core)
        except Exception as error:  # ONNX Runtime's errors share no narrower base
            raise _unreadable(path, error) from error
        metadata: Mapping[str, Any] = _read_metadata(path, session)
    else:
        missing = providers.preload()
        # The CPU reads the file first: what it refuses is the file's fault, what only the GPU refuses is not.
        metadata = _open(path, data, "cpu", threads, False, "").metadata
        wanted = providers.session_providers(provider, metadata["image_size"], metadata["precision"], cuda_graphs)
        try:
            session = _open_session(data, wanted, threads)
        except Exception as error:
            why = "; ".join(filter(None, [missing, _line(error)]))
            raise GraftError(f"provider {provider} was asked for and fails ({why}); see `graft doctor`") from error
        _check_provider(session, provider, missing)
    _check_signature(path, session, metadata)
    return Model(path, session, provider, metadata, note, cuda_graphs, core)


def _open_session(
    data: bytes, wanted: list[Any], threads: int, core: int | None = None
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    # Threads that spin while they wait take the cores from a server's own loop and from all other work: beside ten
    # busy processes, VGG16 served 1.5 times as many pictures when they never did. So they spin between two layers only.
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)
    if core is not None:
        others = sorted(os.sched_getaffinity(0) - {core})
        options.add_session_config_entry(
            "session.intra_op_thread_affinities", ";".join(str(core + 1) for core in others)
        )
    # Its own fallback would run on the CPU what a GPU refuses, and only print so.
    return onnxruntime.InferenceSession(data, options, providers=wanted, enable_fallback=0)


def _unreadable(path: Path, error: Exception) -> InputError:
    """Why even the CPU cannot read the file."""
    if re.search(r"opset|IR version", str(error), re.IGNORECASE):
        return InputError(
            f"{path} is made for a newer ONNX than ONNX Runtime {onnxruntime.__version__} reads; update "
            "onnxruntime or export it again"
        )
    return InputError(f"{path} is damaged or no ONNX file; make it again (ONNX Runtime says: {_line(error)})")


def _core(threads: int) -> int | None:
    """The core of the thread that calls, where a run takes all cores; None leaves every thread free.

    A thread that slept is woken on its waker's core, and a short run is over before the kernel moves it: one picture
    took twice as long. With fewer threads than cores all stay free, for other processes may have the same number.
    """
    cores = sorted(os.sched_getaffinity(0))
    return cores[0] if len(cores) > 1 and threads in (0, len(cores)) else None


@contextmanager
def _on_core(core: int | None) -> Iterator[None]:
    """The calling thread on `core` meanwhile, where it may still go there: a container's cores can be taken away."""
    before = os.sched_getaffinity(0)
    if core not in before:
        yield
        return
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _check_provider(session: onnxruntime.InferenceSession, asked: str, missing: str) -> None:
    in_use = session.get_providers()[0]
    if in_use != providers.FULL_NAMES[asked]:
        raise GraftError(
            f"provider {asked} was asked for, but ONNX Runtime came up with {in_use}"
            f"{f' ({missing})' if missing else ''}; `graft doctor` says what is missing, or ask for cpu"
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
        raise InputError(f"{path}: graft.{key} in the metadata is not JSON ({error}); export it again") from error
    missing = [key for key in ("format", "name", "classes", "image_size", "precision") if key not in metadata]
    if missing:
        raise InputError(
            f"{path} lacks the metadata {', '.join(f'graft.{key}' for key in missing)}; "
            "only files exported by Graft can be used"
        )
    if metadata["format"] != FORMAT:
        raise InputError(f"{path} has graft.format {metadata['format']}, this reads {FORMAT}; update Graft")
    if not _list_of(str, metadata["classes"]) or len(set(metadata["classes"])) != len(metadata["classes"]):
        raise InputError(f"{path}: graft.classes must list different names. Received: {metadata['classes']!r}")
    if not _list_of(int, metadata["image_size"]) or len(metadata["image_size"]) != 2:
        raise InputError(f"{path}: graft.image_size must be [height, width]. Received: {metadata['image_size']!r}")
    return metadata


def _list_of(kind: type, value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _check_signature(path: Path, session: onnxruntime.InferenceSession, metadata: Mapping[str, Any]) -> None:
    inputs = {node.name: (node.type, list(node.shape)[1:]) for node in session.get_inputs()}
    outputs = {node.name: (node.type, list(node.shape)[1:]) for node in session.get_outputs()}
    fixed: list[int | str] = [*metadata["image_size"], 3]
    free: list[int | str] = ["height", "width", 3]
    axes = free if inputs.get(INPUT, ("", []))[1] == free else fixed
    wanted_inputs = {INPUT: ("tensor(uint8)", axes)}
    wanted_output = ("tensor(float)", [len(metadata["classes"])])
    if inputs != wanted_inputs or outputs.get(OUTPUT) != wanted_output:
        raise InputError(
            f"{path}: inputs and outputs do not match its metadata; wanted {wanted_inputs} and "
            f"{ {OUTPUT: wanted_output} }. Received: {inputs} and {outputs}"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
