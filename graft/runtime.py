"""The machine's settings that a stage needs before its first tensor: quiet, deterministic, seeded, bounded.

Call `start` before anything imports Keras.
"""

from __future__ import annotations

import os

from graft import params


def start(settings: params.Params) -> None:
    """Set threads, seeds and deterministic operations for this process.

    State left by an earlier stage of the same process (layer names, random generators) is reset, so that a
    stage computes the same bytes alone and after others.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    keras.backend.clear_session()
    keras.utils.set_random_seed(settings.seed)
    if keras.backend.backend() == "tensorflow":
        _configure_tensorflow(settings.runtime.threads)


def _configure_tensorflow(threads: int) -> None:
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    if threads and tf.config.threading.get_intra_op_parallelism_threads() != threads:
        # TensorFlow takes these only before its first operation; later it raises, and rightly so.
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
