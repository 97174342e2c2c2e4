"""What a test needs and does not find: it skips aloud, or fails where all of it has been installed for the tests."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

# Set by `.ci/run` once it has installed the browser; `make test` installs the rest. Nothing may be skipped there.
INSTALLED = "GRAFT_TESTS_HAVE_ALL"


def absent(reason: str) -> NoReturn:
    """End the test that calls; `reason` says what is not here and what was therefore not tested."""
    if os.environ.get(INSTALLED):
        pytest.fail(f"{reason}, and {INSTALLED} says that it is installed")
    pytest.skip(f"SKIPPED ALOUD: {reason}")
