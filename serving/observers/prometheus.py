"""Prometheus metrics of the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from envs.scheduling.state import PRIORITIES
from serving.engine.engine import Engine
from serving.engine.request import BatchRecord, Observer, Refused, RequestResult
from serving.models.tensors import split_bucket

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0)


class _ByLabels(dict[tuple[str, ...], Any]):
    """The children of a metric by their labels; the metric's own way to look one up takes longer than a decision."""

    def __init__(self, metric: Counter | Histogram) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> Any:
        child = self[labels] = self._metric.labels(*labels)
        return child


_labels = cache(split_bucket)  # of a scheduled model: its name and its bucket, "" for one of fixed sizes


class Metrics(Observer):
    """Counts what ends in an engine; reads its gauges when asked.

    Args:
        engine: the engine to observe.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...]) -> _ByLabels:
            return _ByLabels(Counter(name, text, labels, registry=registry))

        def histogram(name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> _ByLabels:
            return _ByLabels(Histogram(name, text, labels, buckets=buckets, registry=registry))

        by, model = ("model", "bucket", "priority"), ("model", "bucket")
        text = "Calls refused before they became requests."
        self._refused = counter("strait_calls_refused", text, ("protocol", "reason"))
        self._requests = counter("strait_requests", "Requests ended, by outcome.", (*by, "outcome", "reason"))
        self._latency = histogram("strait_request_latency_seconds", "Arrival to answer.", by, SECONDS)
        self._queue = histogram("strait_request_queue_seconds", "Arrival to dispatch.", by, SECONDS)
        self._batches = counter("strait_batches", "Batches ended.", (*model, "result"))
        self._size = histogram("strait_batch_size", "Requests in a batch.", model, (1, 2, 4, 8, 16, 32, 64))
        text = "Predicted over actual time of a batch, dispatch to finish."
        self._ratio = histogram("strait_batch_predicted_over_actual", text, model, RATIOS)
        self._decision = Histogram(
            "strait_decision_seconds", "Time that a decision took.", registry=registry,
            buckets=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 1e-1),
        )  # fmt: skip
        self._offered = Gauge("strait_requests_offered", "Requests offered.", ("priority",), registry=registry)
        self._queued = Gauge("strait_queue_length", "Requests queued.", by, registry=registry)
        self._busy = Gauge("strait_streams_busy", "Streams with a batch.", registry=registry)
        self._streams = Gauge("strait_streams", "Streams of the device.", registry=registry)
        self._fallbacks = Gauge("strait_policy_fallbacks", "Decisions taken by the fallback policy.", registry=registry)
        self._overruns = Gauge("strait_policy_overruns", "Decisions over their time budget.", registry=registry)
        self._replaced = Gauge("strait_policy_replaced", "1 when the policy was replaced.", registry=registry)
        self._policy = Gauge("strait_policy", "1 for the policy in force.", ("policy",), registry=registry)
        text = "Share of violated weight less Strait's, in the comparison of --policy auto."
        self._difference = Gauge("strait_policy_difference", text, ("policy",), registry=registry)
        text = "What a high-priority request counts, a low-priority one being 1."
        self._high_weight = Gauge("strait_high_weight", text, registry=registry)
        self._accepting = Gauge("strait_accepting", "1 while requests are taken.", registry=registry)
        self._gpu: dict[str, Gauge] = {}
        self._decisions_seen = 0
        self.differences: Callable[[], Mapping[str, tuple[float, float]]] = dict

    def request_ended(self, result: RequestResult) -> None:
        by = (*_labels(result.model), PRIORITIES[result.priority])
        self._requests[(*by, result.outcome, result.reason)].inc()
        if result.answered:
            self._latency[by].observe(result.latency_ms / 1e3)
            self._queue[by].observe(result.queue_ms / 1e3)

    def request_refused(self, refused: Refused) -> None:
        self._refused[refused.protocol, refused.reason].inc()

    def batch_ended(self, batch: BatchRecord) -> None:
        model = _labels(batch.model)
        self._batches[(*model, "ok" if batch.error is None else "failed")].inc()
        self._size[model].observe(batch.batch_size)
        actual = batch.phases.total_ms
        if batch.error is None and actual > 0:
            self._ratio[model].observe(batch.predicted_ms / actual)
        self._take_decisions()

    def _take_decisions(self) -> None:
        for took_us in self.engine.guard.decisions_since(self._decisions_seen):
            self._decision.observe(took_us / 1e6)
        self._decisions_seen = self.engine.guard.decisions

    def render(self) -> tuple[bytes, str]:
        """The body of /metrics and its content type."""
        engine = self.engine
        self._take_decisions()
        self._queued.clear()
        lengths = engine.scheduler.queue_lengths
        for number, priority in enumerate(PRIORITIES):
            self._offered.labels(priority).set(int(engine.offered[number]))
            for m, model in enumerate(engine.models):
                self._queued.labels(*_labels(model), priority).set(int(lengths[number, m]))
        self._busy.set(engine.in_flight)
        self._streams.set(engine.scheduler.streams)
        self._fallbacks.set(engine.guard.fallbacks)
        self._overruns.set(engine.guard.overruns)
        self._replaced.set(engine.guard.replaced is not None)
        self._accepting.set(engine.accepting)
        self._policy.clear()
        self._policy.labels(engine.guard.name).set(1)
        self._high_weight.set(engine.scheduler.high_weight)
        for name, (mean, _) in self.differences().items():
            self._difference.labels(name).set(mean / 100)
        for name, value in engine.executor.gauges().items():
            if name not in self._gpu:
                self._gpu[name] = Gauge(f"strait_gpu_{name}", f"NVML: {name}.", registry=self.registry)
            self._gpu[name].set(value)
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
