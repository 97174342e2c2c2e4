import json
import logging
import os
import random
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from work import shared

if __name__ == "__main__":
    keras.utils.set_random_seed(7)
    tf.config.experimental.enable_op_determinism()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    weights = float(np.abs(model.get_weights()[0]).sum())
    Path("first.json").write_text(json.dumps({"layers": [l.name for l in model.layers], "weights": weights, "argv": sys.argv[1:]}))
    shared.SEEN.extend(bytearray(64 << 20) for _ in range(4))
    os.environ["LEAKED"] = "yes"
    os.chdir(tempfile.gettempdir())
    sys.path.insert(0, "/leaked")
    logging.basicConfig(level=logging.DEBUG, force=True)
    warnings.simplefilter("error")
    keras.config.set_floatx("float16")
    random.seed(1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.umask(0o077)
