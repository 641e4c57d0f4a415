"""The last seconds of a server, for its status page: batches, ends of requests, queues and refusals, in bounded memory.

The hot path appends, and counts; whatever takes longer is done when somebody asks.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from envs.scheduling.state import PRIORITIES
from serving.engine.request import BatchRecord, Observer, Refused, RequestResult
from serving.models.tensors import split_bucket

WINDOW_MS = 20_000.0
TICK_MS = 250.0
MOST_BATCHES = 2_000
MOST_REFUSALS = 50
LONGEST_MESSAGE = 300

QueueLengths = Mapping[str, Sequence[int]]


@dataclass(slots=True)
class Tick:
    """A quarter of a second.

    Attributes:
        start_ms: when it began.
        queued: requests in the queues then, of high and of low priority, by model; without models that have none.
        ends: requests that ended in it, by priority and outcome.
    """

    start_ms: float
    queued: QueueLengths
    ends: Counter[tuple[int, str]] = field(default_factory=Counter)

    def describe(self) -> dict[str, Any]:
        """As the page reads it."""
        ends: dict[str, dict[str, int]] = {name: {} for name in PRIORITIES}
        for (priority, outcome), count in self.ends.items():
            ends[PRIORITIES[priority]][outcome] = count
        return {"start_ms": self.start_ms, "queued": self.queued, "ends": ends}


@dataclass(slots=True)
class Refusals:
    """Requests of one model and priority that were not answered, for one reason: how many, when and why the last of them."""

    count: int = 0
    last_ms: float = 0.0
    message: str = ""


class Recent(Observer):
    """Keeps what the status page shows.

    Args:
        now_ms: the clock of what is observed.
        queued: gives the lengths of the queues now, see `Tick`.
    """

    def __init__(self, now_ms: Callable[[], float], queued: Callable[[], QueueLengths]) -> None:
        self._now_ms = now_ms
        self._queued = queued
        self._started_s = time.time()
        self._batches: deque[BatchRecord] = deque(maxlen=MOST_BATCHES)
        self._ticks: deque[Tick] = deque(maxlen=round(WINDOW_MS / TICK_MS) + 1)
        self._tick_ends_ms = -math.inf
        self._refusals: dict[tuple[str, str, str], Refusals] = {}  # the latest last

    def request_ended(self, result: RequestResult) -> None:
        """Count how it ended, and why if it was not answered."""
        if result.finish_ms >= self._tick_ends_ms:
            self._begin_tick(result.finish_ms)
        self._ticks[-1].ends[result.priority, result.outcome] += 1
        if result.outcome in ("dropped", "failed"):
            what = (split_bucket(result.model)[0], PRIORITIES[result.priority], result.reason or result.outcome)
            self._refuse(what, result.message, result.finish_ms)

    def batch_ended(self, batch: BatchRecord) -> None:
        """Keep it."""
        self._batches.append(batch)

    def request_refused(self, refused: Refused) -> None:
        """Count why."""
        self._refuse(("", "", refused.reason), refused.message, self._now_ms())

    def _begin_tick(self, now_ms: float) -> None:
        """Begin the tick of a time, with a look at the queues."""
        start_ms = now_ms // TICK_MS * TICK_MS
        self._ticks.append(Tick(start_ms, self._queued()))
        self._tick_ends_ms = start_ms + TICK_MS

    def _refuse(self, what: tuple[str, str, str], message: str, now_ms: float) -> None:
        refusals = self._refusals.pop(what, None) or Refusals()
        refusals.count += 1
        refusals.last_ms, refusals.message = now_ms, message
        self._refusals[what] = refusals
        if len(self._refusals) > MOST_REFUSALS:
            del self._refusals[next(iter(self._refusals))]

    def answer(self, since_ms: float) -> dict[str, Any]:
        """What is new, as JSON has it.

        Args:
            since_ms: `now_ms` of the answer before; 0: all of the last seconds. The tick that it lies in comes again, whole.
        """
        now = self._now_ms()
        if now >= self._tick_ends_ms:
            self._begin_tick(now)
        after = max(since_ms, now - WINDOW_MS)
        batches = [*takewhile(lambda batch: batch.seen_ms > after, reversed(self._batches))]
        ticks = [*takewhile(lambda tick: tick.start_ms + TICK_MS > after, reversed(self._ticks))]
        return {
            "started_s": self._started_s,
            "now_ms": now,
            "window_ms": WINDOW_MS,
            "batches": [_describe(batch) for batch in reversed(batches)],
            "ticks": [tick.describe() for tick in reversed(ticks)],
            "refusals": [
                {
                    "model": model,
                    "priority": priority,
                    "reason": reason,
                    "count": refusals.count,
                    "last_ms": refusals.last_ms,
                    "message": refusals.message[:LONGEST_MESSAGE],
                }
                for (model, priority, reason), refusals in reversed(self._refusals.items())
            ],
        }


def _describe(batch: BatchRecord) -> dict[str, Any]:
    return {
        "stream": batch.stream,
        "model": batch.model,
        "size": batch.batch_size,
        "high": batch.n_high,
        "priority": PRIORITIES[batch.priority],
        "start_ms": batch.decided_ms,
        "end_ms": batch.phases.d2h_end_ms,
        "predicted_ms": batch.predicted_ms,
        "error": batch.error,
    }
