"""Counts and durations of each model since the server began, as Triton's statistics extension has them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from serving.engine.request import BatchRecord, Observer, Outcome


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
    """How often, and how long in all: copy to the device, execution, copy back."""

    count: int = 0
    input_ms: float = 0.0
    infer_ms: float = 0.0
    output_ms: float = 0.0

    def add(self, batch: BatchRecord, count: int = 1) -> None:
        """Count a batch's phases `count` times."""
        self.count += count
        self.input_ms += count * (batch.h2d_end_ms - batch.h2d_start_ms)
        self.infer_ms += count * (batch.exec_end_ms - batch.exec_start_ms)
        self.output_ms += count * (batch.d2h_end_ms - batch.exec_end_ms)

    def describe(self) -> dict[str, dict[str, int]]:
        """As the protocol writes it."""
        return {
            "compute_input": Duration(self.count, self.input_ms).describe(),
            "compute_infer": Duration(self.count, self.infer_ms).describe(),
            "compute_output": Duration(self.count, self.output_ms).describe(),
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
    by_size: dict[int, Compute] = field(default_factory=dict)


class Statistics(Observer):
    """Adds up what ends in the engine, by model. A call of n items counts as n requests."""

    def __init__(self) -> None:
        self._counts: dict[str, _Counts] = {}

    def request_ended(self, outcome: Outcome) -> None:
        """Count it as a success (met or late) or as a failure (all else)."""
        counts = self._of(outcome.model)
        if outcome.answered:
            counts.success.add(outcome.latency_ms)
            counts.queue.add(outcome.queue_ms)
        else:
            counts.fail.add(outcome.latency_ms)

    def batch_ended(self, batch: BatchRecord) -> None:
        """Count an execution, unless it failed."""
        if batch.error is not None:
            return
        counts = self._of(batch.model)
        counts.last_inference_ms = int(time.time() * 1e3)
        counts.executions += 1
        counts.inferences += batch.batch_size
        counts.compute.add(batch, batch.batch_size)
        of_size = counts.by_size.get(batch.batch_size)
        if of_size is None:
            of_size = counts.by_size[batch.batch_size] = Compute()
        of_size.add(batch)

    def describe(self, model: str, version: str) -> dict[str, Any]:
        """One model's entry of `model_stats`."""
        counts = self._of(model)
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

    def _of(self, model: str) -> _Counts:
        counts = self._counts.get(model)
        if counts is None:
            counts = self._counts[model] = _Counts()
        return counts
