"""Refuses on arrival what would only be dropped later: requests whose deadline the queue ahead puts out of reach.

A policy drops a queued request when it could not be met even alone, now; under overload that is known when its deadline has
nearly passed, and its client has waited for nothing. Here the wait is predicted: the work that is queued ahead of it (same
priority, due no later), over the rate at which that priority's work was done lately. Work is counted in ms alone on the
device, each request as its share of a largest batch, by the tables that the policy reads. That rate already holds what the
other priority takes, how batches run side by side, and what batching saves.

This is a matter of the API, not of the policy: a replay and the simulator offer every request, which comparing policies needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from serving.engine.request import BatchRecord, Observer
from serving.engine.scheduler import LiveScheduler

WINDOW_MS = 2000.0  # what is older than this counts little
EVIDENCE_MS = 200.0  # of work with a queue behind it, before anything is refused


class Admission(Observer):
    """Observes the rate at which an engine works its queues off.

    Args:
        scheduler: of the engine.
        now_ms: the engine's clock.
    """

    def __init__(self, scheduler: LiveScheduler, now_ms: Callable[[], float]) -> None:
        self._scheduler = scheduler
        self._now_ms = now_ms
        self._done = [_Rate(), _Rate()]

    def batch_ended(self, batch: BatchRecord) -> None:
        """Count its work, if there was a queue behind it all the time since the batch before."""
        scheduler = self._scheduler
        for priority, n in enumerate((batch.n_high, batch.batch_size - batch.n_high)):
            if n == 0:
                continue
            done = self._done[priority]
            queued = scheduler.queued > 0 and scheduler.ahead(priority, math.inf)[0] > 0
            if queued or done.going:
                work = n * self._share_ms(batch.model, -1) if batch.error is None else 0.0
                done.add(work, self._now_ms(), queued)

    def refusal(self, model: str, priority: int, deadline_ms: float) -> str:
        """Why a request that arrives now cannot be met, in one line; nothing if it may be.

        Raises:
            KeyError: no such model.
        """
        scheduler, done = self._scheduler, self._done[priority]
        if done.spent_ms < EVIDENCE_MS or done.work_ms <= 0.0 or scheduler.queued == 0:
            return ""
        requests, work = scheduler.ahead(priority, self._now_ms() + deadline_ms)
        if requests < scheduler.tables.size[-1]:  # it may join the next batch
            return ""
        finish = work * done.spent_ms / done.work_ms + self._share_ms(model, 0)
        if finish <= deadline_ms:
            return ""
        return (
            f"deadline of {deadline_ms:.1f} ms is out of reach: {requests} requests are ahead, "
            f"predicted finish at {finish:.1f} ms"
        )

    def _share_ms(self, model: str, size: int) -> float:
        """A request's share of a batch of the `size`-th size that runs alone."""
        tables, m = self._scheduler.tables, self._scheduler.index[model]
        return float(tables.solo[0, m, size]) / int(tables.size[size])


class _Rate:
    """Work over time, both fading with a window."""

    def __init__(self) -> None:
        self.work_ms = self.spent_ms = 0.0
        self._since = math.nan  # when the last batch ended; NaN if it left no queue behind

    @property
    def going(self) -> bool:
        """Whether the last batch left a queue behind."""
        return not math.isnan(self._since)

    def add(self, work_ms: float, now_ms: float, queued: bool) -> None:
        """A batch ended; `queued` says whether there is more to do."""
        spent = now_ms - self._since
        self._since = now_ms if queued else math.nan
        if spent >= 0.0:  # not NaN
            keep = math.exp(-spent / WINDOW_MS)
            self.work_ms = keep * self.work_ms + work_ms
            self.spent_ms = keep * self.spent_ms + spent
