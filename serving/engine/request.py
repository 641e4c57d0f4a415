"""A request on its way through the engine, how it ended, and the interface of those that observe it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from envs.scheduling.state import OUTCOMES, WAITING
from serving.models.tensors import Item
from traces.measurements import Phases

FULL, UNREACHABLE, STOPPING = "queue full", "deadline out of reach", "stopping"
FAULT, LEFT, UNLOADED = "fault", "client left", "model unloaded"


class Origin(NamedTuple):
    """What a client says of its request, to find it again in logs, recordings and timelines.

    Attributes:
        client_id: the client's own id of the request, "" without.
        traceparent: the W3C trace context of its call, "" without.
    """

    client_id: str = ""
    traceparent: str = ""


UNNAMED = Origin()


class Refused(NamedTuple):
    """A call that was refused before it became a request of the engine.

    Attributes:
        protocol: "http" or "grpc".
        reason: the kind of the refusal, e.g. "bad_input".
        message: one line for people.
        client: address of the client.
        origin: what the client said of its request.
    """

    protocol: str
    reason: str
    message: str
    client: str
    origin: Origin


@dataclass(slots=True, kw_only=True)
class RequestResult:
    """A request, and how it ended. Times are ms on the engine's clock.

    Attributes:
        id: the engine's number of the request.
        model: name of its model.
        priority: 0 (high) or 1 (low).
        outcome: "met", "late", "dropped", "failed" or "cancelled"; "waiting" before that.
        outputs: what the model answered, an array for each output, without batch dimension; None unless met or late.
        reason: why it was dropped, failed or cancelled (one of the constants of this module), else "".
        message: one line for people that says more, else "".
        arrival_ms: when it arrived.
        deadline_ms: when it was due (absolute).
        offered_ms: when the engine was given it; after its arrival where a replay's timer was late.
        start_ms: when its batch was dispatched; NaN if never.
        finish_ms: when it ended; NaN before that.
        batch_id: its batch; -1 if never dispatched.
        batch_size: requests in that batch; 0 if never dispatched.
        predicted_ms: time from dispatch to finish that the scheduler predicted; NaN if never dispatched.
        client_id: see `Origin`.
        traceparent: see `Origin`.
    """

    id: int
    model: str
    priority: int
    outcome: str = OUTCOMES[WAITING]
    outputs: Item | None = None
    reason: str = ""
    message: str = ""
    arrival_ms: float
    deadline_ms: float
    offered_ms: float
    start_ms: float = math.nan
    finish_ms: float = math.nan
    batch_id: int = -1
    batch_size: int = 0
    predicted_ms: float = math.nan
    client_id: str = ""
    traceparent: str = ""

    @property
    def output(self) -> np.ndarray | None:
        """The first output."""
        return None if self.outputs is None else self.outputs[0]

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
    """A request inside the engine.

    Attributes:
        result: what is known of it so far; whole once it has ended.
        model_index: index of its model in the scheduling state.
        values: its inputs, an array for each; None once it has ended.
        future: gets the result.
        discarded: whether its client left while it was in flight.
        held: whether an answer is not its end: its caller has more to do with it, and then calls `Engine.settle`.
    """

    result: RequestResult
    model_index: int
    values: Item | None
    future: asyncio.Future[RequestResult]
    discarded: bool = False
    held: bool = False


@dataclass(slots=True, kw_only=True)
class BatchRecord:
    """A batch that ended, or a half of one that was split. Times are ms on the engine's clock.

    Attributes:
        batch_id: its number.
        stream: the stream that ran it.
        model: name of its model.
        priority: 0 (high) or 1 (low); high if any of its requests is.
        batch_size: requests in it.
        n_high: those of high priority among them.
        error: one line, or None.
        phases: when its phases began and ended on the device.
        decided_ms: when the scheduler decided on it.
        seen_ms: when the scheduler saw it end.
        predicted_ms: time from dispatch to finish predicted at dispatch.
        co_runners: batches in flight at dispatch.
    """

    batch_id: int
    stream: int
    model: str
    priority: int
    batch_size: int
    n_high: int
    error: str | None
    phases: Phases
    decided_ms: float
    seen_ms: float
    predicted_ms: float
    co_runners: int


class Observer:
    """Sees what happens in the engine, on its loop; must be quick and must not raise.

    Attributes:
        of_model: whether it looks at how the model answered, not at what became of the answer: of a request that is held it
            sees the end of the model's part.
    """

    of_model = False

    def request_ended(self, result: RequestResult) -> None:
        """A request ended."""

    def batch_ended(self, batch: BatchRecord) -> None:
        """A batch ended, well or not."""

    def request_refused(self, refused: Refused) -> None:
        """A call was refused before it became a request."""


COLUMNS = ("arrival_ms", "finish_ms", "model", "priority", "outcome", "latency_ms", "queue_ms", "batch_id")


def result_table(results: Sequence[RequestResult], start_ms: float = 0.0) -> pd.DataFrame:
    """One row per result, with `COLUMNS`; times relative to `start_ms` of the engine's clock."""
    table = pd.DataFrame({name: [getattr(result, name) for result in results] for name in COLUMNS})
    table[["arrival_ms", "finish_ms"]] -= start_ms
    return table
