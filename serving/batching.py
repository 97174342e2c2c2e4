"""Dynamic batching: what waits while the model is busy runs together; an idle model waits for nobody.

In: single requests of a few pictures, from the event loop. Out: their probabilities, as futures of that
loop. One thread runs the model; it takes its next batch straight from the queue, with no way round the loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from graft.inference import Images, Model, Probabilities
from serving.errors import Busy, RequestError
from serving.settings import Batching
from serving.statistics import Statistics

logger = logging.getLogger(__name__)

Observer = Callable[[Images, Probabilities], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """Probabilities, N×C float32, and the number of pictures that ran together."""

    probabilities: Probabilities
    batch: int


class _Job:
    """Some pictures of one request on their way through the queue."""

    __slots__ = ("future", "images", "queued_ns", "rows")

    def __init__(self, images: Images, future: asyncio.Future[Answer]) -> None:
        self.images = images
        self.rows = len(images)
        self.future = future
        self.queued_ns = time.perf_counter_ns()


class Batcher:
    """The queue of one model and the thread that empties it.

    `observe` sees every run's pictures and probabilities on that thread, after the answers have left.
    """

    def __init__(
        self, model: Model, options: Batching, statistics: Statistics, observe: Observer | None = None
    ) -> None:
        self._model, self._options, self._statistics, self._observe = model, options, statistics, observe
        self._loop = asyncio.get_running_loop()
        self._waiting: OrderedDict[_Job, None] = OrderedDict()
        self._rows_waiting = 0
        self._changed = threading.Condition()
        self._closing = False
        self._seconds_per_row = 0.0
        self._thread = threading.Thread(target=self._work, name=f"batches of {model.name}", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def max_batch_size(self) -> int:
        """Pictures that run together at most."""
        return self._options.max_batch_size

    async def submit(self, images: Images, deadline: float = 0.0) -> Answer:
        """Probabilities for `images`, 1 ≤ N ≤ `max_batch_size`; queued before the first suspension.

        `deadline` bounds the seconds in the queue; 0 takes the server's own bound.

        Raises:
            Busy: the queue is full.
            RequestError: 503, the deadline passed before its turn came.
            GraftError: ONNX Runtime failed.
        """
        job = _Job(images, self._loop.create_future())
        with self._changed:
            if self._rows_waiting + job.rows > self._options.max_queue_size:
                self._statistics.add_failure("REJECTED", 0)
                seconds = self._rows_waiting * self._seconds_per_row
                raise Busy(f"{self._model.name} has {self._rows_waiting} pictures waiting, try again later", seconds)
            self._waiting[job] = None
            self._rows_waiting += job.rows
            self._changed.notify()
        timer = self._loop.call_later(deadline or self._options.deadline, self._expire, job)
        try:
            return await job.future
        except asyncio.CancelledError:
            self._statistics.add_failure("CANCELED", time.perf_counter_ns() - job.queued_ns)
            self._withdraw(job)
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        """Let the thread finish what waits, then end; nothing may be submitted any more."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    async def join(self) -> None:
        """Wait until the thread has ended after `close`."""
        await asyncio.to_thread(self._thread.join)

    def _expire(self, job: _Job) -> None:
        if self._withdraw(job) and not job.future.done():
            self._statistics.add_failure("REJECTED", time.perf_counter_ns() - job.queued_ns)
            message = f"the request waited for {self._model.name} longer than its deadline"
            job.future.set_exception(RequestError(503, message, {"retry-after": "1"}))

    def _withdraw(self, job: _Job) -> bool:
        with self._changed:
            if job not in self._waiting:
                return False
            del self._waiting[job]
            self._rows_waiting -= job.rows
            return True

    def _work(self) -> None:
        while batch := self._take():
            started = time.perf_counter_ns()
            images = batch[0].images if len(batch) == 1 else np.concatenate([job.images for job in batch])
            joined = time.perf_counter_ns()
            outcome: Probabilities | Exception
            try:
                outcome = self._model.predict(images)
            except Exception as error:
                logger.exception("a run of %d pictures failed", len(images))
                outcome = error
            ended = time.perf_counter_ns()
            self._seconds_per_row = (ended - started) / len(images) / 1e9
            self._loop.call_soon_threadsafe(self._deliver, batch, outcome, started, joined, ended)
            if self._observe is not None and not isinstance(outcome, Exception):
                self._observe(images, outcome)

    def _take(self) -> list[_Job]:
        """The next batch, in order of arrival; empty at the end."""
        with self._changed:
            while True:
                while not self._waiting:
                    if self._closing:
                        return []
                    self._changed.wait()
                if self._options.max_queue_delay > 0:
                    self._wait_for_more()
                if batch := self._first_in_line():
                    return batch

    def _first_in_line(self) -> list[_Job]:
        batch: list[_Job] = []
        rows = 0
        while self._waiting:
            job = next(iter(self._waiting))
            if batch and rows + job.rows > self._options.max_batch_size:
                break
            del self._waiting[job]
            batch.append(job)
            rows += job.rows
        self._rows_waiting -= rows
        return batch

    def _wait_for_more(self) -> None:
        """With a queue delay: until the batch is full or the oldest request has waited that long."""
        oldest = next(iter(self._waiting)).queued_ns / 1e9
        while not self._closing and 0 < self._rows_waiting < self._options.max_batch_size:
            left = oldest + self._options.max_queue_delay - time.perf_counter_ns() / 1e9
            if left <= 0 or not self._changed.wait(left):
                return

    def _deliver(
        self, batch: list[_Job], outcome: Probabilities | Exception, started: int, joined: int, ended: int
    ) -> None:
        if isinstance(outcome, Exception):
            for job in batch:
                self._statistics.add_failure("BACKEND", ended - job.queued_ns)
                if not job.future.done():
                    job.future.set_exception(outcome)
            return
        rows = len(outcome)
        queued = sum(started - job.queued_ns for job in batch)
        self._statistics.add_batch(rows, len(batch), queued, joined - started, ended - joined)
        self._statistics.add_answers(outcome)
        start = 0
        for job in batch:
            if not job.future.done():
                job.future.set_result(Answer(outcome[start : start + job.rows], rows))
            start += job.rows
