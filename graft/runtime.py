"""The machine's settings that a stage needs before its first tensor: quiet, deterministic, seeded, bounded.

Call `start` before anything imports Keras.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from graft import params

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
    if threads and tf.config.threading.get_intra_op_parallelism_threads() != threads:
        # TensorFlow takes these only before its first operation; later it raises, and rightly so.
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
