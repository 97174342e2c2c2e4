import json
import logging
import os
import random
import signal
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from work import shared

if __name__ == "__main__":
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, kernel_initializer="ones")])
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    found = {
        "layers": [layer.name for layer in model.layers],
        "floatx": keras.config.floatx(),
        "seen": len(shared.SEEN),
        "leaked": os.environ.get("LEAKED"),
        "path": "/leaked" in sys.path,
        "handlers": len(logging.getLogger().handlers),
        "seeded": [random.random() == random.Random(1).random(), float(np.random.rand()) == float(np.random.RandomState(7).rand())],
        "determinism": tf.config.experimental.list_physical_devices("TPU") != [],
        "argv": sys.argv[1:],
        "ignores SIGTERM": signal.getsignal(signal.SIGTERM) is signal.SIG_IGN,
        "umask": os.umask(0),
        "resident over 1.2 GB": resident > 1.2e9,
    }
    from tensorflow.python.framework import config

    found["determinism"] = config.is_op_determinism_enabled()
    Path("second.json").write_text(json.dumps(found))
