"""Counts and durations of each model since the server began, as Triton's statistics extension has them."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from serving.engine.request import BatchRecord, Observer, RequestResult
from traces.measurements import Phases


@dataclass(slots=True)
class Duration:
    """How often, and how long in all."""

    count: int = 0
    ms: float = 0.0

    def add(self, ms: float) -> None:
        """Count one more."""
        self.count += 1
        self.ms += ms

    def describe(self) -> dict[str, int]:
        """As the protocol writes it."""
        return {"count": self.count, "ns": round(self.ms * 1e6)}


@dataclass(slots=True)
class Compute:
    """How often a batch of one size ran, and how long its phases took in all."""

    count: int = 0
    input_ms: float = 0.0
    infer_ms: float = 0.0
    output_ms: float = 0.0

    def add(self, phases: Phases) -> None:
        """Count one more."""
        self.count += 1
        self.input_ms += phases.h2d_end_ms - phases.h2d_start_ms
        self.infer_ms += phases.exec_end_ms - phases.exec_start_ms
        self.output_ms += phases.d2h_end_ms - phases.exec_end_ms

    def describe(self) -> dict[str, dict[str, int]]:
        """As the protocol writes it."""
        phases = {"compute_input": self.input_ms, "compute_infer": self.infer_ms, "compute_output": self.output_ms}
        return {name: Duration(self.count, ms).describe() for name, ms in phases.items()}


@dataclass(slots=True)
class _Counts:
    last_inference_ms: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    by_size: defaultdict[int, Compute] = field(default_factory=lambda: defaultdict(Compute))

    def per_request(self) -> Compute:
        """The phases of all batches, each counted for every request in it."""
        return Compute(
            sum(size * one.count for size, one in self.by_size.items()),
            sum(size * one.input_ms for size, one in self.by_size.items()),
            sum(size * one.infer_ms for size, one in self.by_size.items()),
            sum(size * one.output_ms for size, one in self.by_size.items()),
        )


class Statistics(Observer):
    """Adds up what ends in the engine, by model. A call of n items counts as n requests."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, _Counts] = defaultdict(_Counts)

    def request_ended(self, result: RequestResult) -> None:
        """Count it as a success (met or late) or as a failure (all else)."""
        counts = self._counts[result.model]
        if result.answered:
            counts.success.add(result.latency_ms)
            counts.queue.add(result.queue_ms)
        else:
            counts.fail.add(result.latency_ms)

    def batch_ended(self, batch: BatchRecord) -> None:
        """Count an execution, unless it failed."""
        if batch.error is not None:
            return
        counts = self._counts[batch.model]
        counts.last_inference_ms = int(time.time() * 1e3)
        counts.by_size[batch.batch_size].add(batch.phases)

    def describe(self, model: str, version: str) -> dict[str, Any]:
        """One model's entry of `model_stats`."""
        counts = self._counts[model]
        compute = counts.per_request()
        nothing = Duration().describe()
        return {
            "name": model,
            "version": version,
            "last_inference": counts.last_inference_ms,
            "inference_count": compute.count,
            "execution_count": sum(one.count for one in counts.by_size.values()),
            "inference_stats": {
                "success": counts.success.describe(),
                "fail": counts.fail.describe(),
                "queue": counts.queue.describe(),
                **compute.describe(),
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [{"batch_size": size, **one.describe()} for size, one in sorted(counts.by_size.items())],
        }
