"""What Prometheus reads: the names Triton's dashboards know, and predictions by class and confidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    generate_latest,
)
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from serving.repository import Repository, Version
from serving.statistics import CONFIDENCE_BOUNDS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LATENCY_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class AnswerCounts:
    """Answers by endpoint and status, and how long they took."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, str]] = Counter()
        self.slots = [0] * (len(_LATENCY_BOUNDS) + 1)
        self.seconds = 0.0

    def add(self, endpoint: str, status: str, seconds: float) -> None:
        """One request, answered."""
        self.answers[endpoint, status] += 1
        self.seconds += seconds
        for slot, bound in enumerate(_LATENCY_BOUNDS):
            if seconds <= bound:
                self.slots[slot] += 1
                return
        self.slots[-1] += 1


def render(repository: Repository, answers: Mapping[str, AnswerCounts]) -> bytes:
    """All metrics in Prometheus' text format; `answers` by the protocol they went out over."""
    registry = CollectorRegistry()
    registry.register(_Versions(repository.versions()))
    for protocol, counts in answers.items():
        registry.register(_Answers(protocol, counts))
    for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
        registry.register(collector)
    return generate_latest(registry)


class _Versions(Collector):
    """Every served version's statistics."""

    def __init__(self, versions: Iterable[Version]) -> None:
        self._versions = list(versions)

    def collect(self) -> Iterator[Metric]:
        yield from self._counts()
        yield from self._durations()
        yield from self._predictions()

    def _counts(self) -> Iterator[Metric]:
        success = _TritonFamily("nv_inference_request_success", "Requests answered")
        failure = _TritonFamily("nv_inference_request_failure", "Requests not answered", "reason")
        count = _TritonFamily("nv_inference_count", "Pictures run")
        executions = _TritonFamily("nv_inference_exec_count", "Runs of the model, each of one batch")
        pending = GaugeMetricFamily(
            "nv_inference_pending_request_count", "Requests in the queue", labels=["model", "version"]
        )
        for version in self._versions:
            statistics, labels = version.statistics, [version.name, version.version]
            success.add_metric(labels, statistics.success.count)
            for reason, failures in statistics.failures.items():
                failure.add_metric([*labels, reason], failures)
            count.add_metric(labels, statistics.inferences)
            executions.add_metric(labels, statistics.executions)
            pending.add_metric(labels, version.batcher.pending)
        yield from (success, failure, count, executions, pending)

    def _durations(self) -> Iterator[Metric]:
        for part, meaning in (
            ("request", "from the request's arrival to its answer"),
            ("queue", "in the queue"),
            ("compute_input", "joining pictures to a batch"),
            ("compute_infer", "in ONNX Runtime"),
            ("compute_output", "writing answers"),
        ):
            family = _TritonFamily(f"nv_inference_{part}_duration_us", f"Microseconds {meaning}")
            for version in self._versions:
                statistics = version.statistics
                duration = {
                    "request": statistics.success,
                    "queue": statistics.queue,
                    "compute_input": statistics.compute.input,
                    "compute_infer": statistics.compute.infer,
                    "compute_output": statistics.compute.output,
                }[part]
                family.add_metric([version.name, version.version], duration.ns // 1000)
            yield family

    def _predictions(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            "graft_model_info",
            "1 for each version served",
            labels=["model", "version", "provider", "precision"],
        )
        predictions = CounterMetricFamily(
            "graft_predictions", "Pictures by the class they were given", labels=["model", "version", "class"]
        )
        confidence = HistogramMetricFamily(
            "graft_confidence", "Probability of the class given", labels=["model", "version"]
        )
        for version in self._versions:
            statistics, labels = version.statistics, [version.name, version.version]
            model = version.model
            info.add_metric([*labels, model.provider, str(model.metadata["precision"])], 1)
            for label, number in zip(model.classes, statistics.predictions.tolist(), strict=True):
                predictions.add_metric([*labels, label], number)
            bounds = [*map(str, CONFIDENCE_BOUNDS[:-1]), "+Inf"]
            confidence.add_metric(
                labels, _cumulative(bounds, statistics.confidences.tolist()), statistics.confidence_sum
            )
        yield from (info, predictions, confidence)


class _Answers(Collector):
    """What went out over one protocol."""

    def __init__(self, protocol: str, counts: AnswerCounts) -> None:
        self._protocol, self._counts = protocol, counts

    def collect(self) -> Iterator[Metric]:
        name = f"graft_{self._protocol}"
        answers = CounterMetricFamily(
            f"{name}_answers", "Answers by endpoint and status", labels=["endpoint", "status"]
        )
        for labels, number in self._counts.answers.items():
            answers.add_metric(labels, number)
        latency = HistogramMetricFamily(f"{name}_seconds", "From a request's head to its answer")
        bounds = [*map(str, _LATENCY_BOUNDS), "+Inf"]
        latency.add_metric([], _cumulative(bounds, self._counts.slots), self._counts.seconds)
        yield from (answers, latency)


class _TritonFamily(Metric):
    """A counter under exactly Triton's name: prometheus_client's own would append `_total`."""

    def __init__(self, name: str, meaning: str, *further: str) -> None:
        super().__init__(name, meaning, "unknown")
        self._labels = ["model", "version", *further]

    def add_metric(self, labels: list[str], value: float) -> None:
        self.add_sample(self.name, dict(zip(self._labels, labels, strict=True)), value)


def _cumulative(bounds: list[str], slots: list[int]) -> list[tuple[str, float]]:
    total = 0
    rows: list[tuple[str, float]] = []
    for bound, number in zip(bounds, slots, strict=True):
        total += number
        rows.append((bound, total))
    return rows
