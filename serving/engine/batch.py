"""A batch on a stream, from dispatch to its end; one that fails is run again in halves, until a bad request stands alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from envs.scheduling.state import HIGH
from serving.engine.request import BatchRecord, Request
from serving.executors.base import Batch, BatchResult


@dataclass(slots=True, eq=False, kw_only=True)
class BatchInFlight:
    """The batch in flight on one stream.

    Attributes:
        batch_id: its number.
        model: name of its model.
        priority: 0 or 1; 0 if any of its requests is of high priority.
        requests: its members.
        start_ms: when the scheduler dispatched it, on the engine's clock.
        predicted_ms: time from dispatch to finish predicted at dispatch.
        co_runners: batches in flight at dispatch.
        parts: what has not been submitted.
        running: what is submitted.
        exec_ms: execution time so far.
        split: whether it failed as a whole and runs in parts.
    """

    batch_id: int
    model: str
    priority: int
    requests: list[Request]
    start_ms: float
    predicted_ms: float
    co_runners: int
    parts: list[list[Request]] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    exec_ms: float = 0.0
    split: bool = False

    @classmethod
    def dispatched(cls, stream: np.ndarray, requests: list[Request]) -> BatchInFlight:
        """The batch that a stream's record of the scheduling state describes; its requests learn what they are part of."""
        batch = cls(
            batch_id=int(stream["batch"]),
            model=requests[0].result.model,
            priority=int(stream["priority"]),
            requests=requests,
            start_ms=float(stream["start"]),
            predicted_ms=float(stream["predicted"]),
            co_runners=int(stream["n_corunners"]),
            parts=[requests],
        )
        for result in (request.result for request in requests):
            result.start_ms, result.predicted_ms = batch.start_ms, batch.predicted_ms
            result.batch_id, result.batch_size = batch.batch_id, len(requests)
        return batch

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
            for request, outputs in zip(self.running, result.outputs or ()):
                request.result.outputs = outputs
            self.exec_ms += result.phases.exec_end_ms - result.phases.exec_start_ms
        elif len(self.running) > 1:
            middle = len(self.running) // 2
            self.parts[:0] = [self.running[:middle], self.running[middle:]]
            self.split = True
        else:
            self.fail(result.error)

    def fail(self, error: str) -> None:
        """The part that was to run did not, or failed."""
        for request in self.running:
            request.result.message = error

    def record(self, result: BatchResult, clock_start_ms: float, now_ms: float) -> BatchRecord:
        """What observers see of the part that ran and ended now, on a clock that began at `clock_start_ms`."""
        phases = result.phases.since(clock_start_ms)
        return BatchRecord(
            batch_id=self.batch_id,
            stream=result.stream,
            model=self.model,
            priority=self.priority,
            batch_size=len(self.running),
            n_high=sum(request.result.priority == HIGH for request in self.running),
            error=result.error,
            phases=phases,
            # A part of a batch was not decided on when the batch was.
            decided_ms=phases.dispatch_ms if self.split else self.start_ms,
            seen_ms=now_ms,
            predicted_ms=self.predicted_ms,
            co_runners=self.co_runners,
        )

    @property
    def teaches(self) -> bool:
        """Whether its times say something about the device: it ran whole, and well."""
        return not self.split and all(request.result.outputs is not None for request in self.requests)
