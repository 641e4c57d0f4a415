"""A batch on a stream, from dispatch to its end; one that runs out of memory is halved and tried once more."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from serving.engine.request import BatchRecord, Request
from serving.executors.base import Batch, BatchResult

# What torch says on CUDA, what its CPU allocator says, and what Python and NumPy say.
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "MemoryError", "Unable to allocate")


@dataclass(slots=True, eq=False)
class Flight:
    """The batch in flight on one stream.

    Attributes:
        batch_id: its number. model: name. priority: 0 or 1. requests: its members.
        predicted_ms: time from dispatch to finish predicted at dispatch. co_runners: batches in flight at dispatch.
        parts: what has not been submitted. running: what is submitted.
        exec_ms: execution time so far. retried: whether it was halved.
    """

    batch_id: int
    model: str
    priority: int
    requests: list[Request]
    predicted_ms: float
    co_runners: int
    parts: list[list[Request]] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    exec_ms: float = 0.0
    retried: bool = False

    @staticmethod
    def of(stream: np.ndarray, requests: list[Request]) -> Flight:
        """The batch that a stream's record of the scheduling state describes; its requests are told of it."""
        start, n = float(stream["start"]), len(requests)
        flight = Flight(
            int(stream["batch"]), requests[0].name, int(stream["priority"]), requests, float(stream["predicted"]),
            int(stream["n_corunners"]), [requests],
        )  # fmt: skip
        for request in requests:
            request.start_ms = start
            request.batch_id, request.batch_size, request.predicted_ms = flight.batch_id, n, flight.predicted_ms
        return flight

    def next_part(self) -> Batch | None:
        """What the executor should run next; None when all parts have run."""
        if not self.parts:
            return None
        self.running = self.parts.pop(0)
        # An input is gone when its request ended meanwhile: the server is stopping.
        inputs = [request.values for request in self.running if request.values is not None]
        return Batch(self.batch_id, self.model, self.priority, inputs)

    def take(self, result: BatchResult) -> None:
        """Note the outputs or the error of the part that ran."""
        if result.error is None:
            outputs: list[np.ndarray] = result.outputs or []
            for request, output in zip(self.running, outputs):
                request.output = output
            self.exec_ms += result.exec_end_ms - result.exec_start_ms
        elif len(self.running) > 1 and not self.retried and _is_out_of_memory(result.error):
            middle = len(self.running) // 2
            self.parts = [self.running[:middle], self.running[middle:]]
            self.retried = True
        else:
            self.refuse(result.error)

    def refuse(self, error: str) -> None:
        """The part that was to run did not, or failed."""
        for request in self.running:
            request.message = error

    def record(self, result: BatchResult, start_ms: float, now_ms: float) -> BatchRecord:
        """What observers are told of the part that ran and is seen to end now, on a clock that began at `start_ms`."""
        o = start_ms
        return BatchRecord(
            self.batch_id, result.stream, self.priority, self.model, len(self.running), result.error,
            result.dispatch_ms - o if self.retried else self.requests[0].start_ms,
            result.dispatch_ms - o, result.h2d_start_ms - o, result.h2d_end_ms - o, result.exec_start_ms - o,
            result.exec_end_ms - o, result.d2h_end_ms - o, now_ms, self.predicted_ms, self.co_runners,
        )  # fmt: skip

    @property
    def teaches(self) -> bool:
        """Whether its times say something about the device: it ran whole, and well."""
        return not self.retried and all(request.output is not None for request in self.requests)


def _is_out_of_memory(error: str) -> bool:
    return any(sign in error for sign in _OUT_OF_MEMORY)
