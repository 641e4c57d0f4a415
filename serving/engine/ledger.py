"""The requests inside an engine: how many were offered, which have not ended, and how each ended; it ends exactly once."""

from __future__ import annotations

import asyncio

import numpy as np

from envs.scheduling.state import CANCELLED, DROPPED, FAILED, LATE, MET, OUTCOMES, PRIORITIES
from serving.engine.request import LEFT, UNLOADED, Observer, Origin, Request, RequestResult


class Ledger:
    """Numbers requests and closes them.

    Args:
        observers: see each end; the list may grow.

    Attributes:
        offered: (2,) requests offered by priority.
        ended: (2, 6) requests ended, by priority and outcome.
        inside: requests that have not ended, by number.
    """

    def __init__(self, observers: list[Observer]) -> None:
        self.offered = np.zeros(2, np.int64)
        self.ended = np.zeros((2, len(OUTCOMES)), np.int64)
        self.inside: dict[int, Request] = {}
        self._observers = observers
        self._last_id = -1
        self._is_empty = asyncio.Event()

    def new(
        self, model: str, priority: int, arrival_ms: float, deadline_ms: float, offered_ms: float, origin: Origin
    ) -> RequestResult:
        """What is known at first of a request, with the next number."""
        self._last_id += 1
        return RequestResult(
            id=self._last_id,
            model=model,
            priority=priority,
            arrival_ms=arrival_ms,
            deadline_ms=deadline_ms,
            offered_ms=offered_ms,
            client_id=origin.client_id,
            traceparent=origin.traceparent,
        )

    def open(self, request: Request) -> None:
        """Note a request that was offered."""
        self.offered[request.result.priority] += 1
        self.inside[request.result.id] = request

    def refuse(self, result: RequestResult, reason: str, message: str, now_ms: float) -> None:
        """Note a request that is turned away before it comes inside: it is offered and dropped at once."""
        self.offered[result.priority] += 1
        _note(result, DROPPED, reason, message, now_ms)
        self.ended[result.priority, DROPPED] += 1
        self._show(result, of_model=True)
        self._show(result, of_model=False)

    def end(self, request: Request, outcome: int, reason: str, message: str, now_ms: float) -> None:
        """Close a request whose end the scheduling state gave as `outcome`, with what the state does not know."""
        # The state sees batches, not answers: it does not know that a client left, or that half of a batch succeeded.
        if request.discarded and reason != UNLOADED:
            outcome, reason, message = CANCELLED, LEFT, "cancelled in flight"
        elif request.result.outputs is not None:
            # To the state, a batch that was halved has failed; its requests that have an output have not.
            met = outcome == MET or (outcome == FAILED and now_ms <= request.result.deadline_ms)
            outcome, reason, message = MET if met else LATE, "", ""
        self.close(request, outcome, reason, message, now_ms)

    def close(self, request: Request, outcome: int, reason: str, message: str, now_ms: float) -> None:
        """Note the end, free the input, and give the result to the request's future."""
        request.values = None
        _note(request.result, outcome, reason, message, now_ms)
        if not request.future.done():
            request.future.set_result(request.result)
        self._show(request.result, of_model=True)
        if not (request.held and request.result.answered):
            self._leave(request, outcome)

    def settle(self, request: Request, outcome: int, reason: str, message: str, now_ms: float) -> None:
        """Note the end of a request that was held."""
        _note(request.result, outcome, reason, message, now_ms)
        self._leave(request, outcome)

    def _leave(self, request: Request, outcome: int) -> None:
        self.inside.pop(request.result.id, None)
        self.ended[request.result.priority, outcome] += 1
        self._show(request.result, of_model=False)
        if not self.inside:
            self._is_empty.set()

    def _show(self, result: RequestResult, of_model: bool) -> None:
        for observer in self._observers:
            if observer.of_model is of_model:
                observer.request_ended(result)

    def counts(self) -> dict[str, dict[str, int]]:
        """Requests that ended, by priority and outcome."""
        return {
            priority: {outcome: int(self.ended[number, place]) for place, outcome in enumerate(OUTCOMES) if place}
            for number, priority in enumerate(PRIORITIES)
        }

    async def empty(self) -> None:
        """Wait until no request is inside."""
        if self.inside:
            self._is_empty.clear()
            await self._is_empty.wait()


def _note(result: RequestResult, outcome: int, reason: str, message: str, now_ms: float) -> None:
    result.outcome, result.reason, result.finish_ms = OUTCOMES[outcome], reason, now_ms
    result.message = message or result.message  # where a batch that failed has left its error


def unreachable(result: RequestResult, alone_ms: float, now_ms: float) -> str:
    """Why a request was given up that takes `alone_ms` at least, with when it would have been finished at the earliest."""
    waited = now_ms - result.arrival_ms
    return (
        f"deadline of {result.deadline_ms - result.arrival_ms:.3f} ms is out of reach: waited {waited:.3f} ms, "
        f"predicted finish at {waited + alone_ms:.3f} ms at the earliest"
    )
