"""The requests inside an engine: how many were offered, which have not ended, and how each ended; it ends exactly once."""

from __future__ import annotations

import asyncio

import numpy as np

from envs.scheduling.state import CANCELLED, FAILED, LATE, MET, OUTCOMES, Tables
from serving.engine.request import LEFT, UNLOADED, Observer, Outcome, Request


class Ledger:
    """Numbers requests and closes them.

    Args:
        observers: told of each end; the list may grow.

    Attributes:
        offered: (2,) requests offered by priority. ended: (2, 6) requests ended, by priority and outcome.
        inside: requests that have not ended, by number.
    """

    def __init__(self, observers: list[Observer]) -> None:
        self.offered = np.zeros(2, np.int64)
        self.ended = np.zeros((2, len(OUTCOMES)), np.int64)
        self.inside: dict[int, Request] = {}
        self._observers = observers
        self._next_id = 0
        self._empty: asyncio.Event | None = None

    def open(
        self,
        m: int,
        model: str,
        priority: int,
        arrival_ms: float,
        deadline_ms: float,
        offered_ms: float,
        values: np.ndarray,
        future: asyncio.Future[Outcome],
    ) -> Request:
        """A new request. Times are absolute; `m` is the index of the model, `future` gets its end."""
        request = Request(self._next_id, m, model, priority, arrival_ms, deadline_ms, offered_ms, values, future)
        self._next_id += 1
        self.offered[priority] += 1
        self.inside[request.id] = request
        return request

    def end(self, request: Request, outcome: int, reason: str, message: str, now_ms: float) -> None:
        """Close a request whose end the scheduling state gave as `outcome`, with what the state does not know."""
        if request.discarded and reason != UNLOADED:
            outcome, reason, message = CANCELLED, LEFT, "cancelled in flight"
        elif request.output is not None:
            # The state calls a batch failed that was halved; its requests that have an output are none the worse.
            met = outcome == MET or (outcome == FAILED and now_ms <= request.deadline_ms)
            outcome, reason, message = MET if met else LATE, "", ""
        self.close(request, outcome, reason, message or request.message, now_ms)

    def close(self, request: Request, outcome: int, reason: str, message: str, now_ms: float) -> None:
        """Note the end, tell whoever waits for it, and all observers."""
        self.inside.pop(request.id, None)
        self.ended[request.priority, outcome] += 1
        result = request.end(outcome, reason, message, now_ms)
        if not request.future.done():
            request.future.set_result(result)
        for observer in self._observers:
            observer.request_ended(result)
        if self._empty is not None and not self.inside:
            self._empty.set()

    async def empty(self) -> None:
        """Wait until no request is inside."""
        self._empty = asyncio.Event()
        if self.inside:
            await self._empty.wait()


def unreachable(request: Request, tables: Tables, now_ms: float) -> str:
    """Why a request was given up, with when it would have been finished at the earliest."""
    m = request.model
    solo = float(tables.h2d[0, m, 0] + tables.solo[0, m, 0] + tables.d2h[0, m, 0])
    waited = now_ms - request.arrival_ms
    return (
        f"deadline of {request.deadline_ms - request.arrival_ms:.1f} ms is out of reach: waited {waited:.1f} ms, "
        f"predicted finish at {waited + solo:.1f} ms at the earliest"
    )
