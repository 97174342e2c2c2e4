"""The machine's settings that a stage needs before its first tensor: quiet, deterministic, seeded, bounded.

Call `start` before anything imports Keras.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from graft import params
from graft.errors import InputError

# absl's prefix of information and warning lines, the notice about it, and one failure: a machine without CUDA.
CHATTER = re.compile(rb"[IW]\d{4} |WARNING: All log messages before absl|E\d{4} .*cuInit|To enable the following instr")


def start(settings: params.Params) -> None:
    """Set threads, seeds and deterministic operations for this process.

    State left by an earlier stage of the same process (layer names, random generators) is reset, so that a
    stage computes the same bytes alone and after others.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _without_chatter():
        import keras

        if keras.backend.backend() == "tensorflow":
            _configure_tensorflow(settings.runtime.threads)
        # Looking for a GPU is what TensorFlow talks about most; let it look here.
        keras.distribution.list_devices()

    keras.backend.clear_session()
    keras.utils.set_random_seed(settings.seed)


@contextmanager
def training(settings: params.Params) -> Iterator[None]:
    """Inside, models are built and trained in `runtime.precision`, each batch shared out among `runtime.devices`.

    Raises:
        InputError: more devices than there are, or half precision without a GPU.
    """
    import keras

    devices = _devices(settings.runtime.devices, keras.distribution.list_devices())
    if settings.runtime.precision != "float32" and devices[0].startswith("cpu"):
        raise InputError(
            f"runtime.precision={settings.runtime.precision} needs a GPU, and there is none here; "
            "set runtime.precision=float32"
        )
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(settings.runtime.precision)
    try:
        with _shared_out(devices):
            yield
    finally:
        keras.config.set_dtype_policy(before)


def on_cpu() -> bool:
    """Whether nothing faster than the processor is in sight."""
    import keras

    return str(keras.distribution.list_devices()[0]).startswith("cpu")


def _devices(wanted: int, found: list[str]) -> list[str]:
    if wanted > len(found):
        raise InputError(
            f"runtime.devices asks for {wanted} devices, and there are {len(found)} ({', '.join(found)}); "
            "set runtime.devices=0 for all of them"
        )
    return found[:wanted] if wanted else found


def _shared_out(devices: list[str]) -> AbstractContextManager[Any]:
    """Data parallelism: Keras' own where it works (JAX), TensorFlow's for Keras on TensorFlow, which has no other."""
    import keras

    if len(devices) == 1:
        return nullcontext()
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        scope: AbstractContextManager[Any] = tf.distribute.MirroredStrategy(devices).scope()
    else:
        scope = keras.distribution.DataParallel(devices=devices).scope()
    return scope


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Drop the information lines that TensorFlow's C++ prints before it reads its own log level."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            for line in said:
                if not CHATTER.match(line):
                    os.write(2, line)


def _configure_tensorflow(threads: int) -> None:
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    # Several stages in one process build several models; its warning of "retracing" then is no advice to anybody.
    tf.get_logger().setLevel("ERROR")
    if threads and tf.config.threading.get_intra_op_parallelism_threads() != threads:
        # TensorFlow takes these only before its first operation; later it raises, and rightly so.
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
