"""One infer request on its way through a version: read, queue, run, write; counted at each step.

What it came as is the caller's: HTTP and gRPC bring the functions that read the request and write the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from graft.inference import Probabilities
from serving.context import Context
from serving.errors import RequestError
from serving.protocol import InferRequest
from serving.repository import Version

Answer = TypeVar("Answer")

Read = Callable[[Version], InferRequest]
Write = Callable[[InferRequest, Probabilities, Version], Answer]


async def infer(
    context: Context, name: str, version: str | None, started_ns: int, read: Read, write: Write[Answer]
) -> Answer:
    """What `write` makes of the probabilities for the request that `read` makes out; `started_ns` is its arrival.

    Raises:
        RequestError: no such model or version, a request that cannot be understood, a full queue, a deadline passed.
        GraftError: ONNX Runtime failed.
    """
    with context.repository.get(name, version).lease() as leased:
        statistics = leased.statistics
        try:
            request = read(leased)
        except RequestError:
            statistics.add_failure("OTHER", time.perf_counter_ns() - started_ns)
            raise
        result = await leased.batcher.submit(request.images, request.seconds)
        computed = time.perf_counter_ns()
        answer = write(request, result.probabilities, leased)
        now = time.perf_counter_ns()
        statistics.add_success(now - started_ns, now - computed, result.batch)
        return answer
