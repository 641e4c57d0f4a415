"""A request on its way through the engine, and how it ended."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from envs.scheduling.state import OUTCOMES

FULL, UNREACHABLE, STOPPING, FAULT, LEFT, UNLOADED = (
    "queue full",
    "deadline out of reach",
    "stopping",
    "fault",
    "client left",
    "model unloaded",
)


@dataclass(slots=True)
class Outcome:
    """How a request ended. Times are ms on the engine's clock.

    Attributes:
        id: the engine's number of the request.
        model: name of its model. priority: 0 (high) or 1 (low).
        outcome: "met", "late", "dropped", "failed" or "cancelled".
        output: what the model answered, without batch dimension; None unless met or late.
        reason: why it was dropped, failed or cancelled (one of the constants of this module), else "".
        message: one line for people that says more, else "".
        arrival_ms: when it arrived. deadline_ms: when it was due (absolute).
        offered_ms: when the engine was given it; after its arrival where a replay's timer rang late.
        start_ms: when its batch was dispatched; NaN if never.
        finish_ms: when it ended.
        batch_id: its batch; -1 if never dispatched. batch_size: requests in that batch; 0 if never dispatched.
        predicted_ms: time from dispatch to finish that the scheduler predicted; NaN if never dispatched.
    """

    id: int
    model: str
    priority: int
    outcome: str
    output: np.ndarray | None
    reason: str
    message: str
    arrival_ms: float
    deadline_ms: float
    offered_ms: float
    start_ms: float
    finish_ms: float
    batch_id: int
    batch_size: int
    predicted_ms: float

    @property
    def latency_ms(self) -> float:
        """Arrival to end."""
        return self.finish_ms - self.arrival_ms

    @property
    def queue_ms(self) -> float:
        """Arrival to dispatch; NaN if it was never dispatched."""
        return self.start_ms - self.arrival_ms

    @property
    def answered(self) -> bool:
        """Whether there is an output (in time or late)."""
        return self.outcome in ("met", "late")


@dataclass(slots=True, eq=False)
class Request:
    """A request that has not ended, or whose end is in `future`."""

    id: int
    model: int
    name: str
    priority: int
    arrival_ms: float
    deadline_ms: float
    offered_ms: float
    values: np.ndarray | None
    future: asyncio.Future[Outcome]
    start_ms: float = math.nan
    batch_id: int = -1
    batch_size: int = 0
    predicted_ms: float = math.nan
    output: np.ndarray | None = None
    message: str = ""
    discarded: bool = False

    def end(self, outcome: int, reason: str, message: str, now_ms: float) -> Outcome:
        """Describe the end; the input is let go."""
        self.values = None
        return Outcome(
            self.id, self.name, self.priority, OUTCOMES[outcome], self.output, reason, message, self.arrival_ms,
            self.deadline_ms, self.offered_ms, self.start_ms, now_ms, self.batch_id, self.batch_size, self.predicted_ms,
        )  # fmt: skip


@dataclass(slots=True)
class BatchRecord:
    """A batch that ended, ms on the engine's clock; the phases are those of traces.measurements.

    `decided_ms` and `seen_ms` are when the scheduler decided on it and saw it end; `predicted_ms` is the time from dispatch to
    finish predicted at dispatch, `co_runners` the batches in flight then.
    """

    batch_id: int
    stream: int
    priority: int
    model: str
    batch_size: int
    error: str | None
    decided_ms: float
    dispatch_ms: float
    h2d_start_ms: float
    h2d_end_ms: float
    exec_start_ms: float
    exec_end_ms: float
    d2h_end_ms: float
    seen_ms: float
    predicted_ms: float
    co_runners: int


class Observer:
    """Told what happens in the engine, on its loop; must be quick and must not raise."""

    def request_ended(self, outcome: Outcome) -> None:
        """A request ended."""

    def batch_ended(self, batch: BatchRecord) -> None:
        """A batch ended, well or not."""


def table_of(outcomes: list[Outcome], start_ms: float = 0.0) -> pd.DataFrame:
    """Outcomes as a table, one row each; times relative to ``start_ms`` of the engine's clock."""
    return pd.DataFrame(
        {
            "arrival_ms": [o.arrival_ms - start_ms for o in outcomes],
            "finish_ms": [o.finish_ms - start_ms for o in outcomes],
            "model": [o.model for o in outcomes],
            "priority": [o.priority for o in outcomes],
            "outcome": [o.outcome for o in outcomes],
            "latency_ms": [o.latency_ms for o in outcomes],
            "queue_ms": [o.queue_ms for o in outcomes],
            "batch_id": [o.batch_id for o in outcomes],
        }
    )
