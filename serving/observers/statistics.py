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

    def add(self, ms: float, count: int = 1) -> None:
        """Count it `count` times."""
        self.count += count
        self.ms += count * ms

    def describe(self) -> dict[str, int]:
        """As the protocol writes it."""
        return {"count": self.count, "ns": round(self.ms * 1e6)}


@dataclass(slots=True)
class Compute:
    """The same of each phase: copy to the device, execution, copy back."""

    input: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)

    def add(self, phases: Phases, count: int = 1) -> None:
        """Count a batch's phases `count` times."""
        self.input.add(phases.h2d_end_ms - phases.h2d_start_ms, count)
        self.infer.add(phases.exec_end_ms - phases.exec_start_ms, count)
        self.output.add(phases.d2h_end_ms - phases.exec_end_ms, count)

    def describe(self) -> dict[str, dict[str, int]]:
        """As the protocol writes it."""
        return {
            "compute_input": self.input.describe(),
            "compute_infer": self.infer.describe(),
            "compute_output": self.output.describe(),
        }


@dataclass(slots=True)
class _Counts:
    last_inference_ms: int = 0
    inferences: int = 0
    executions: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute: Compute = field(default_factory=Compute)
    by_size: defaultdict[int, Compute] = field(default_factory=lambda: defaultdict(Compute))


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
        counts.executions += 1
        counts.inferences += batch.batch_size
        counts.compute.add(batch.phases, batch.batch_size)
        counts.by_size[batch.batch_size].add(batch.phases)

    def describe(self, model: str, version: str) -> dict[str, Any]:
        """One model's entry of `model_stats`."""
        counts = self._counts[model]
        nothing = Duration().describe()
        return {
            "name": model,
            "version": version,
            "last_inference": counts.last_inference_ms,
            "inference_count": counts.inferences,
            "execution_count": counts.executions,
            "inference_stats": {
                "success": counts.success.describe(),
                "fail": counts.fail.describe(),
                "queue": counts.queue.describe(),
                **counts.compute.describe(),
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [
                {"batch_size": size, **compute.describe()} for size, compute in sorted(counts.by_size.items())
            ],
        }
