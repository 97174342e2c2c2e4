"""A frozen Keras network on MNN, whose Winograd kernels need fewer multiplications than a matrix product does.

In: a Keras graph. Out: a function of preprocessed float32 pictures (batch × H × W × C) to the graph's outputs by name,
in Keras' own order of axes. MNN keeps channels first throughout: a graph that begins with a transpose
has been seen to write beyond its memory at batches of 48 and more (MNN 3.6.1).

MNN is written and converted by its compiled module alone. Its package `MNN.tools` installs a logging package and sends
figures of the model away when it is imported; nothing here imports it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.errors import GraftError

TRIAL_SECONDS = 300

Array = npt.NDArray[Any]
Runner = Callable[[Array], dict[str, Array]]


class UnsupportedError(GraftError):
    """The network cannot run here on MNN; the message says why."""


def installed() -> bool:
    """Whether MNN is in this environment."""
    return util.find_spec("MNN") is not None


def version() -> str:
    """MNN's version, which decides the last bits of what it computes."""
    return metadata.version("MNN")


def load(image: Any, outputs: dict[str, Any], start: Any, sample: Array, threads: int) -> Runner:
    """The graph from `start` (a tensor behind `image`) to `outputs`, tried with `sample` in a child first.

    `sample` and what the runner takes are batch × H × W × C float32, the values of `start`.

    Raises:
        UnsupportedError: a layer has no translation, or the child failed.
    """
    import onnx

    from graft import mnn_graph  # here, so that the child starts without Keras

    graph = mnn_graph.translate(image, outputs, start)
    names = list(outputs)
    with tempfile.TemporaryDirectory(prefix="graft-") as scratch:
        onnx.save(graph, Path(scratch) / "trunk.onnx")
        np.save(Path(scratch) / "sample.npy", sample)
        _child(Path(scratch), names, threads)
        return open_file(Path(scratch) / "trunk.mnn", names, threads)


def open_file(path: Path, names: list[str], threads: int) -> Runner:
    """The network in the file at `path`; its outputs are called `names`."""
    with _quiet():
        from MNN import expr, nn

    module = nn.load_module_from_file(str(path), ["image"], names, shape_mutable=True, thread_num=threads)

    def run(pictures: Array) -> dict[str, Array]:
        channels_first = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), np.float32)
        entry = expr.const(channels_first, list(channels_first.shape), expr.NCHW, expr.float)
        answers = [expr.convert(answer, expr.NCHW).read() for answer in module.forward([entry])]
        return {name: _channels_last(np.array(answer)) for name, answer in zip(names, answers, strict=True)}

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what MNN's compiled code prints of the processor when it is loaded."""
    kept = os.dup(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        sys.stdout.flush()
        os.dup2(nothing, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


def _channels_last(values: Array) -> Array:
    return np.ascontiguousarray(values.transpose(0, 2, 3, 1)) if values.ndim == 4 else values


def _child(folder: Path, names: list[str], threads: int) -> None:
    """Convert and run once in a process that may die."""
    command = [sys.executable, "-m", __name__, str(folder), json.dumps(names), str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TRIAL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UnsupportedError(f"MNN {version()} did not finish a trial batch in {TRIAL_SECONDS} s") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise UnsupportedError(f"MNN {version()} failed on a trial batch (status {done.returncode}) {last}".rstrip())


def trial(folder: Path, names: list[str], threads: int) -> None:
    """Convert `trunk.onnx`, and see that the same pictures give the same bytes twice."""
    import _tools  # MNN's converter

    source, target = folder / "trunk.onnx", folder / "trunk.mnn"
    _tools.mnnconvert(
        ["mnnconvert", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(target), "--bizCode", "graft"]
    )
    if not target.is_file():
        sys.exit("its converter refused the network")
    sample = np.load(folder / "sample.npy")
    run = open_file(target, names, threads)
    first, again = run(sample), run(sample)
    if any((first[name] != again[name]).any() for name in names):
        sys.exit("the same pictures gave other features the second time")


if __name__ == "__main__":
    trial(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]))
