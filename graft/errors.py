"""The errors a person can cause or meet, one class each way out.

Each message is one line: what was wanted, what was received, and the mend. The command line prints it
without a traceback and ends with the class's exit code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GraftError(Exception):
    """The work failed in a way that is understood; the message says what to do."""

    exit_code = 1


class InputError(GraftError):
    """A parameter, file or request given by a person is wrong."""

    exit_code = 2


def nearest(name: str, valid: Iterable[str]) -> str:
    """The clause that points from a misspelt `name` to the valid names: the nearest, or the whole list.

    >>> nearest("dropuot", ["dropout", "epochs"])
    'did you mean dropout?'
    """
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return f"valid names: {', '.join(names)}"
