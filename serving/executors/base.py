"""What executors are given and give back: batches and their results."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from serving.models.tensors import Item
from traces.measurements import Phases


@dataclass(slots=True)
class Batch:
    """Requests of one model that run together.

    Attributes:
        batch_id: the caller's number, handed back in the result.
        model: name of a loaded model.
        priority: 0 (high) or 1 (low).
        inputs: one item per request: an array for each input of the model, without batch dimension.
    """

    batch_id: int
    model: str
    priority: int
    inputs: list[Item]


@dataclass(slots=True)
class BatchResult:
    """How a batch ended: outputs or an error, and when each phase began and ended.

    Attributes:
        batch_id: the batch's number.
        stream: the stream that ran it.
        phases: on the clock of `time.perf_counter` in ms; those that a failed batch never reached have the time of its
            failure.
        outputs: one item per request: an array for each output, without batch dimension; None after an error.
        error: one line, or None.
    """

    batch_id: int
    stream: int
    phases: Phases
    outputs: list[Item] | None = None
    error: str | None = None


OnResult = Callable[[BatchResult], None]


def now_ms() -> float:
    """The clock of all results: `time.perf_counter` in milliseconds."""
    return time.perf_counter() * 1e3


def failed_result(batch: Batch, stream: int, dispatch_ms: float, error: str) -> BatchResult:
    """The result of a batch that failed now."""
    return BatchResult(batch.batch_id, stream, Phases(dispatch_ms, *(now_ms(),) * 5), error=error)
