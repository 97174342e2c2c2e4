"""The worker as a process of its own: what a scheduled flow run starts to do the stages' work."""

from __future__ import annotations

import sys

from flows.link import spawned
from flows.run import Run
from graft.errors import GraftError


def main(arguments: list[str]) -> int:
    """Work for the flow at the other end of the link."""
    link, request = spawned(arguments)
    try:
        return Run(request, link=link).work()
    except GraftError as error:
        return error.exit_code  # the flow has been told the sentence


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
