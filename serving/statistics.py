"""Counts and durations of one served version, as Triton's statistics extension defines them.

Written by the event loop only, read by `/v2/…/stats` and `/metrics`. Durations are nanoseconds.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graft.inference import Probabilities

CONFIDENCE_BOUNDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


@dataclass
class Duration:
    """How often something happened and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Count `count` more that took `ns` in all."""
        self.count += count
        self.ns += ns

    def as_json(self) -> dict[str, int]:
        """As the statistics extension writes it."""
        return {"count": self.count, "ns": self.ns}


@dataclass
class Compute:
    """The three parts of runs of one batch size."""

    input: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)

    def as_json(self) -> dict[str, Any]:
        """As the statistics extension writes it."""
        return {
            "compute_input": self.input.as_json(),
            "compute_infer": self.infer.as_json(),
            "compute_output": self.output.as_json(),
        }


class Statistics:
    """What happened to the requests of one version."""

    def __init__(self, classes: int) -> None:
        self.success = Duration()
        self.failures: dict[str, int] = {"REJECTED": 0, "CANCELED": 0, "BACKEND": 0, "OTHER": 0}
        self.fail_ns = 0
        self.queue = Duration()
        self.compute = Compute()
        self.batches: defaultdict[int, Compute] = defaultdict(Compute)
        self.inferences = 0
        self.executions = 0
        self.last_inference_ms = 0
        self.predictions = np.zeros(classes, np.int64)
        self.confidences = np.zeros(len(CONFIDENCE_BOUNDS), np.int64)
        self.confidence_sum = 0.0

    def add_batch(self, rows: int, requests: int, queue_ns: int, input_ns: int, infer_ns: int) -> None:
        """One run of `rows` pictures of `requests` requests, which waited `queue_ns` together."""
        self.executions += 1
        self.inferences += rows
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.queue.add(queue_ns, requests)
        # Triton counts a run's time once for each request in it, and once for its batch size.
        self.compute.input.add(input_ns * requests, requests)
        self.compute.infer.add(infer_ns * requests, requests)
        self.batches[rows].input.add(input_ns)
        self.batches[rows].infer.add(infer_ns)

    def add_answers(self, probabilities: Probabilities) -> None:
        """The answers of one run: N×C probabilities."""
        self.predictions += np.bincount(probabilities.argmax(axis=1), minlength=len(self.predictions))
        confidence = probabilities.max(axis=1)
        slots = np.minimum(np.searchsorted(CONFIDENCE_BOUNDS, confidence), len(CONFIDENCE_BOUNDS) - 1)
        self.confidences += np.bincount(slots, minlength=len(CONFIDENCE_BOUNDS))
        self.confidence_sum += float(confidence.sum())

    def add_success(self, request_ns: int, output_ns: int, batch: int) -> None:
        """One request answered with 200 after `output_ns` of encoding; `batch` pictures ran together."""
        self.success.add(request_ns)
        self.compute.output.add(output_ns)
        self.batches[batch].output.add(output_ns)

    def add_failure(self, reason: str, request_ns: int) -> None:
        """One request not answered with 200, by Triton's `reason`."""
        self.failures[reason] += 1
        self.fail_ns += request_ns

    def as_json(self, name: str, version: str) -> dict[str, Any]:
        """As the statistics extension writes it."""
        nothing = Duration().as_json()
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_inference_ms,
            "inference_count": self.inferences,
            "execution_count": self.executions,
            "inference_stats": {
                "success": self.success.as_json(),
                "fail": {"count": sum(self.failures.values()), "ns": self.fail_ns},
                "queue": self.queue.as_json(),
                **self.compute.as_json(),
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "response_stats": {},
            "batch_stats": [
                {"batch_size": rows, **compute.as_json()} for rows, compute in sorted(self.batches.items())
            ],
            "memory_usage": [],
        }
