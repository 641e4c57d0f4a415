"""What executors are given and give back: batches and their results."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from traces.measurements import Phases


@dataclass(slots=True)
class Batch:
    """Requests of one model that run together.

    Attributes:
        batch_id: the caller's number, handed back in the result.
        model: name of a loaded model.
        priority: 0 (high) or 1 (low).
        inputs: one array per request, of the model's input_shape, without batch dimension.
    """

    batch_id: int
    model: str
    priority: int
    inputs: list[np.ndarray]


@dataclass(slots=True)
class BatchResult:
    """How a batch ended: outputs or an error, and when each phase began and ended.

    Attributes:
        batch_id: the batch's number.
        stream: the stream that ran it.
        phases: on the clock of `time.perf_counter` in ms; those that a failed batch never reached have the time of its
            failure.
        outputs: one array per request, without batch dimension; None after an error.
        error: one line, or None.
    """

    batch_id: int
    stream: int
    phases: Phases
    outputs: list[np.ndarray] | None = None
    error: str | None = None


OnResult = Callable[[BatchResult], None]


def now_ms() -> float:
    """The clock of all results: `time.perf_counter` in milliseconds."""
    return time.perf_counter() * 1e3


def failed_result(batch: Batch, stream: int, dispatch_ms: float, error: str) -> BatchResult:
    """The result of a batch that failed now."""
    return BatchResult(batch.batch_id, stream, Phases(dispatch_ms, *(now_ms(),) * 5), error=error)


def error_line(error: BaseException) -> str:
    """What an error says, in one line."""
    # The last line of a TorchScript error is the original one; a traceback through the graph is above it.
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
