"""WHEN: Prefect flows over the graph that dvc.yaml describes."""

import atexit
import gc
import os

# What keeps Prefect and DVC quiet and offline, unless the user said otherwise.
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
}

# Here, because Prefect reports a first use while it is imported.
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

# At exit Python looks through every object for garbage: a third of a second with Prefect or DVC loaded, for nothing.
atexit.register(gc.freeze)
