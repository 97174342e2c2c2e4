"""The queue: what waits runs together, nobody waits for an idle model, and nothing waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from graft.errors import GraftError
from serving.batching import Answer, Batcher
from serving.errors import Busy, RequestError
from serving.settings import Batching
from serving.statistics import Statistics


class SlowModel:
    """Answers when told to, and remembers the sizes of its batches."""

    name = "slow"

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.sizes: list[int] = []
        self.error: Exception | None = None

    def predict(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.sizes.append(len(images))
        self.entered.release()
        assert self.go.acquire(timeout=30)
        if self.error is not None:
            raise self.error
        marks = images.reshape(len(images), -1)[:, :1].astype(np.float32) / 255
        return np.concatenate([marks, 1 - marks], axis=1)


@asynccontextmanager
async def batcher(model: SlowModel, **options: Any) -> AsyncIterator[tuple[Batcher, Statistics]]:
    statistics = Statistics(2)
    queue = Batcher(model, Batching(**options), statistics)  # type: ignore[arg-type]
    yield queue, statistics
    model.go.release(1000)
    queue.close()
    await queue.join()


def pictures(*marks: int) -> np.ndarray[Any, Any]:
    return np.stack([np.full((2, 2, 3), mark, np.uint8) for mark in marks])


def in_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 60))  # type: ignore[arg-type]

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def entered(model: SlowModel) -> None:
    assert await asyncio.to_thread(model.entered.acquire, timeout=30)


def marks(answers: list[Answer]) -> list[int]:
    return [round(float(answer.probabilities[0, 0]) * 255) for answer in answers]


@in_loop
async def test_what_waits_while_the_model_is_busy_runs_together() -> None:
    model = SlowModel()
    async with batcher(model, max_batch_size=4) as (queue, statistics):
        first = asyncio.create_task(queue.submit(pictures(1)))
        await entered(model)  # an idle model takes the first at once, alone
        rest = [asyncio.create_task(queue.submit(pictures(mark))) for mark in range(2, 9)]
        await asyncio.sleep(0)
        assert queue.pending == 7
        model.go.release(3)
        assert marks(await asyncio.gather(first, *rest)) == list(range(1, 9))
        assert model.sizes == [1, 4, 3]
        assert (statistics.executions, statistics.inferences, statistics.queue.count) == (3, 8, 8)


@in_loop
async def test_a_request_is_never_cut_in_two() -> None:
    model = SlowModel()
    async with batcher(model, max_batch_size=4) as (queue, _):
        first = asyncio.create_task(queue.submit(pictures(1)))
        await entered(model)
        rest = [asyncio.create_task(queue.submit(pictures(mark, mark, mark))) for mark in (2, 3)]
        await asyncio.sleep(0)
        model.go.release(3)
        answers = await asyncio.gather(first, *rest)
        assert [len(answer.probabilities) for answer in answers] == [1, 3, 3]
        assert model.sizes == [1, 3, 3]


@in_loop
async def test_with_a_delay_the_model_waits_for_a_full_batch() -> None:
    model = SlowModel()
    async with batcher(model, max_batch_size=3, max_queue_delay=30) as (queue, _):
        tasks = [asyncio.create_task(queue.submit(pictures(mark))) for mark in (1, 2, 3)]
        model.go.release(1)
        await asyncio.gather(*tasks)
        assert model.sizes == [3]


@in_loop
async def test_a_full_queue_is_busy() -> None:
    model = SlowModel()
    async with batcher(model, max_queue_size=2) as (queue, statistics):
        first = asyncio.create_task(queue.submit(pictures(1)))
        await entered(model)
        waiting = asyncio.create_task(queue.submit(pictures(2, 3)))
        await asyncio.sleep(0)
        with pytest.raises(Busy) as caught:
            await queue.submit(pictures(4))
        assert caught.value.status == 503
        assert int(caught.value.headers["retry-after"]) >= 1
        assert statistics.failures["REJECTED"] == 1
        model.go.release(2)
        assert marks(await asyncio.gather(first, waiting)) == [1, 2]


@in_loop
async def test_a_deadline_ends_the_waiting() -> None:
    model = SlowModel()
    async with batcher(model) as (queue, _):
        first = asyncio.create_task(queue.submit(pictures(1)))
        await entered(model)
        with pytest.raises(RequestError, match="deadline") as caught:
            await queue.submit(pictures(2), deadline=0.01)
        assert caught.value.status == 503
        assert queue.pending == 0
        model.go.release(1)
        await first
        assert model.sizes == [1]  # what nobody waits for is never run


@in_loop
async def test_a_cancelled_request_leaves_the_queue() -> None:
    model = SlowModel()
    async with batcher(model) as (queue, statistics):
        first = asyncio.create_task(queue.submit(pictures(1)))
        await entered(model)
        gone = asyncio.create_task(queue.submit(pictures(2)))
        stays = asyncio.create_task(queue.submit(pictures(3)))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert queue.pending == 1
        assert statistics.failures["CANCELED"] == 1
        model.go.release(2)
        assert marks(await asyncio.gather(first, stays)) == [1, 3]
        assert model.sizes == [1, 1]


@in_loop
async def test_a_failed_run_fails_its_requests_and_no_others() -> None:
    model = SlowModel()
    async with batcher(model) as (queue, statistics):
        model.error = GraftError("out of memory")
        model.go.release(1)
        with pytest.raises(GraftError, match="out of memory"):
            await queue.submit(pictures(1))
        model.error = None
        model.go.release(1)
        assert marks([await queue.submit(pictures(9))]) == [9]
        assert statistics.failures["BACKEND"] == 1


@in_loop
async def test_closing_answers_what_waits() -> None:
    model = SlowModel()
    statistics = Statistics(2)
    queue = Batcher(model, Batching(max_batch_size=1), statistics)  # type: ignore[arg-type]
    tasks = [asyncio.create_task(queue.submit(pictures(mark))) for mark in (1, 2, 3)]
    await entered(model)
    queue.close()
    model.go.release(3)
    assert marks(await asyncio.gather(*tasks)) == [1, 2, 3]
    await queue.join()
