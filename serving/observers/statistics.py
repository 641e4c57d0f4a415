"""Counts and durations of each model since the server began, as Triton's statistics extension has them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.engine.request import BatchRecord, Observer, RequestResult
from serving.models.tensors import split_bucket


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
class _Counts:
    last_inference_ms: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    # By batch size: the number of batches, and ms of input, execution and output in all.
    by_size: defaultdict[int, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0] * 4))


def _compute(batches: Sequence[float]) -> dict[str, dict[str, int]]:
    """A row of `_Counts.by_size` as the protocol writes it."""
    count, *spent_ms = batches
    names = ("compute_input", "compute_infer", "compute_output")
    return {name: Duration(round(count), ms).describe() for name, ms in zip(names, spent_ms, strict=True)}


class Statistics(Observer):
    """Adds up what ends in the engine, by model, its buckets together. A call of n items counts as n requests."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, _Counts] = defaultdict(_Counts)

    def request_ended(self, result: RequestResult) -> None:
        """Count it as a success (met or late) or as a failure (all else)."""
        counts = self._counts[split_bucket(result.model)[0]]
        if result.answered:
            counts.last_inference_ms = int(time.time() * 1e3)
            counts.success.add(result.latency_ms)
            counts.queue.add(result.queue_ms)
        else:
            counts.fail.add(result.latency_ms)

    def batch_ended(self, batch: BatchRecord) -> None:
        """Count an execution, unless it failed."""
        if batch.error is not None:
            return
        counts = self._counts[split_bucket(batch.model)[0]]
        phases = batch.phases
        copied_in, ran = phases.h2d_end_ms - phases.h2d_start_ms, phases.exec_end_ms - phases.exec_start_ms
        row = counts.by_size[batch.batch_size]
        row[0] += 1.0
        row[1] += copied_in
        row[2] += ran
        row[3] += phases.d2h_end_ms - phases.exec_end_ms

    def describe(self, model: str, version: str) -> dict[str, Any]:
        """One model's entry of `model_stats`."""
        counts = self._counts[model]
        # The phases of a batch count for every request in it.
        per_request = [sum(size * row[at] for size, row in counts.by_size.items()) for at in range(4)]
        nothing = Duration().describe()
        return {
            "name": model,
            "version": version,
            "last_inference": counts.last_inference_ms,
            # A door answers, and sees no batches.
            "inference_count": int(per_request[0]) if counts.by_size else counts.success.count,
            "execution_count": int(sum(row[0] for row in counts.by_size.values())),
            "inference_stats": {
                "success": counts.success.describe(),
                "fail": counts.fail.describe(),
                "queue": counts.queue.describe(),
                **_compute(per_request),
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [{"batch_size": size, **_compute(row)} for size, row in sorted(counts.by_size.items())],
        }
