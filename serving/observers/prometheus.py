"""Prometheus metrics of the engine.

The hot path counts in lists and dicts, in a tenth of the time that the library's own metrics take for it; the library makes
the text of them when somebody asks.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Info, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from envs.scheduling.state import PRIORITIES
from serving.engine.request import BatchRecord, Observer, Refused, RequestResult
from serving.models.tensors import split_bucket
from traces.machine import package_version

if TYPE_CHECKING:  # a door has metrics, and does without torch
    from serving.engine.engine import Engine

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)
DECISION_SECONDS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 1e-1)
DECISIONS_AT_ONCE = 64  # are counted, unless somebody asks before
MODEL = ("model", "bucket")
BY = (*MODEL, "priority")

Labels = tuple[str, ...]
_labels = cache(split_bucket)  # of a scheduled model: its name and its bucket, "" for one of fixed sizes


def process_registry() -> CollectorRegistry:
    """A registry that knows the process (memory, processor time, open files) and what was built into it."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    Info("strait_build", "Versions of the server and of what it runs on.", registry=registry).info(_build())
    return registry


@cache
def _build() -> dict[str, str]:
    return {"version": package_version(), "python": platform.python_version(), "torch": version("torch")}


class Histogram:
    """Values by bucket, for each set of labels.

    Args:
        name: of the metric.
        text: what it is.
        labels: names of its labels.
        bounds: upper ends of its buckets, ascending; one without end follows.
    """

    def __init__(self, name: str, text: str, labels: Labels, bounds: Sequence[float]) -> None:
        self._name, self._text, self._labels, self._bounds = name, text, labels, bounds
        self._counts: defaultdict[Labels, list[int]] = defaultdict(lambda: [0] * (len(bounds) + 1))
        self._sums: defaultdict[Labels, float] = defaultdict(float)

    def observe(self, labels: Labels, value: float) -> None:
        """Count a value."""
        self._counts[labels][bisect_left(self._bounds, value)] += 1
        self._sums[labels] += value

    def family(self) -> HistogramMetricFamily:
        """As the library writes it."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        ends = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for labels, counts in self._counts.items():
            family.add_metric(labels, list(zip(ends, accumulate(counts))), self._sums[labels])
        return family


class Metrics(Observer, Collector):
    """Counts what ends in an engine; reads its gauges when asked.

    Args:
        engine: the engine to observe.

    Attributes:
        differences: of the comparison of --policy auto, for each policy: mean and half an interval, in points.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.differences: Callable[[], Mapping[str, tuple[float, float]]] = dict
        self._refused: Counter[Labels] = Counter()
        self._requests: Counter[Labels] = Counter()
        self._batches: Counter[Labels] = Counter()
        self._latency = Histogram("strait_request_latency_seconds", "Arrival to answer.", BY, SECONDS)
        self._queue = Histogram("strait_request_queue_seconds", "Arrival to dispatch.", BY, SECONDS)
        self._size = Histogram("strait_batch_size", "Requests in a batch.", MODEL, SIZES)
        text = "Predicted over actual time of a batch, dispatch to finish."
        self._ratio = Histogram("strait_batch_predicted_over_actual", text, MODEL, RATIOS)
        text = "Time that a decision took."
        self._decision = Histogram("strait_decision_seconds", text, (), DECISION_SECONDS)
        self._decisions_seen = 0
        self._registry = process_registry()
        self._registry.register(self)

    def request_ended(self, result: RequestResult) -> None:
        by = (*_labels(result.model), PRIORITIES[result.priority])
        self._requests[(*by, result.outcome, result.reason)] += 1
        if result.answered:
            self._latency.observe(by, result.latency_ms / 1e3)
            self._queue.observe(by, result.queue_ms / 1e3)

    def request_refused(self, refused: Refused) -> None:
        self._refused[refused.protocol, refused.reason] += 1

    def batch_ended(self, batch: BatchRecord) -> None:
        model = _labels(batch.model)
        self._batches[(*model, "ok" if batch.error is None else "failed")] += 1
        self._size.observe(model, batch.batch_size)
        actual = batch.phases.total_ms
        if batch.error is None and actual > 0:
            self._ratio.observe(model, batch.predicted_ms / actual)
        if self.engine.guard.decisions - self._decisions_seen >= DECISIONS_AT_ONCE:
            self._take_decisions()

    def _take_decisions(self) -> None:
        for took_us in self.engine.guard.decisions_since(self._decisions_seen):
            self._decision.observe((), took_us / 1e6)
        self._decisions_seen = self.engine.guard.decisions

    def render(self) -> tuple[bytes, str]:
        """The body of /metrics and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        """All metrics now, as the library asks for them."""
        engine, guard = self.engine, self.engine.guard
        self._take_decisions()
        yield counter(
            "calls_refused", "Calls refused before they became requests.", ("protocol", "reason"), self._refused
        )
        yield counter("requests", "Requests ended, by outcome.", (*BY, "outcome", "reason"), self._requests)
        yield counter("batches", "Batches ended.", (*MODEL, "result"), self._batches)
        for histogram in (self._latency, self._queue, self._size, self._ratio, self._decision):
            yield histogram.family()
        lengths, offered = engine.scheduler.queue_lengths, engine.offered
        yield gauge(
            "requests_offered", "Requests offered.", ("priority",),
            {(priority,): offered[number] for number, priority in enumerate(PRIORITIES)},
        )  # fmt: skip
        yield gauge(
            "queue_length", "Requests queued.", BY,
            {
                (*_labels(model), priority): lengths[number, m]
                for number, priority in enumerate(PRIORITIES)
                for m, model in enumerate(engine.models)
            },
        )  # fmt: skip
        yield gauge("policy", "1 for the policy in force.", ("policy",), {(guard.name,): 1})
        yield gauge(
            "policy_difference", "Share of violated weight less Strait's, in the comparison of --policy auto.", ("policy",),
            {(name,): mean / 100 for name, (mean, _) in self.differences().items()},
        )  # fmt: skip
        alone: dict[str, tuple[str, float]] = {
            "streams_busy": ("Streams with a batch.", engine.in_flight),
            "streams": ("Streams of the device.", engine.scheduler.streams),
            "policy_fallbacks": ("Decisions taken by the fallback policy.", guard.fallbacks),
            "policy_overruns": ("Decisions over their time budget.", guard.overruns),
            "policy_replaced": ("1 when the policy was replaced.", guard.replaced is not None),
            "high_weight": (
                "What a high-priority request counts, a low-priority one being 1.",
                engine.scheduler.high_weight,
            ),
            "accepting": ("1 while requests are taken.", engine.accepting),
        }
        alone |= {f"gpu_{name}": (f"NVML: {name}.", value) for name, value in engine.executor.gauges().items()}
        for name, (text, value) in alone.items():
            yield gauge(name, text, (), {(): value})


def counter(name: str, text: str, labels: Labels, counts: Mapping[Labels, int]) -> CounterMetricFamily:
    """The metric strait_NAME that only grows, by the values of its labels."""
    family = CounterMetricFamily(f"strait_{name}", text, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


def gauge(name: str, text: str, labels: Labels, values: Mapping[Labels, float]) -> GaugeMetricFamily:
    """The metric strait_NAME, by the values of its labels."""
    family = GaugeMetricFamily(f"strait_{name}", text, labels=labels)
    for own, value in values.items():
        family.add_metric(own, float(value))
    return family
