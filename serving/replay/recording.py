"""A recording played back: what the status page of the recorded server showed, at the speed of then or another."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from envs.scheduling.state import HIGH, PRIORITIES
from serving.engine.request import BatchRecord, RequestResult
from serving.observers.recorder import Asked, Ended
from serving.profiling.calibrate import without_token
from serving.status.recent import QueueLengths, Recent
from traces.errors import InputError
from traces.machine import MachineInfo
from traces.measurements import PHASES, SCHEDULED, Measurements, Phases
from traces.tables import read_table


class Recording(NamedTuple):
    """One part of what `serving.observers.recorder` wrote.

    Attributes:
        name: of its folder.
        machine: that it was recorded on.
        requests: all of them, ended.
        batches: those that ended well.
    """

    name: str
    machine: MachineInfo
    requests: list[RequestResult]
    batches: list[BatchRecord]


def read_recording(folder: Path) -> Recording:
    """Read one part, or the latest of a folder with several.

    Raises:
        InputError: there is none, a file is malformed, or it was recorded before ends of requests were.
    """
    if not (folder / "arrivals.parquet").is_file():
        parts = [path.parent for path in folder.glob("*/arrivals.parquet") if path.parent.name.isdecimal()]
        if not parts:
            raise InputError(f"--view {folder}: no recording; expected a folder that serve.py --record wrote")
        folder = max(parts, key=lambda path: int(path.name))
    asked = read_table(folder / "arrivals.parquet", Asked._fields)
    ends = read_table(folder / "ends.parquet", Ended._fields)
    if len(asked) != len(ends):
        raise InputError(f"{folder}: {len(asked)} rows of arrivals, and {len(ends)} of ends; expected as many")
    measured = Measurements.load(folder)
    live = measured.batches[measured.batches["kind"] == "live"]
    if not set(SCHEDULED) <= set(live):
        raise InputError(f"{folder / 'batches.parquet'}: no live batches")
    requests = _requests(asked.join(ends))
    predicted = {result.start_ms: result.predicted_ms for result in requests}
    high = Counter((result.model, result.start_ms) for result in requests if result.priority == HIGH)
    batches = [_batch(row, predicted, high) for row in live.to_dict("records")]
    return Recording(str(folder), measured.machine, requests, batches)


def _requests(rows: pd.DataFrame) -> list[RequestResult]:
    return [
        RequestResult(
            id=number,
            model=row["model"],
            priority=PRIORITIES.index(row["priority"]),
            arrival_ms=row["arrival_ms"],
            deadline_ms=row["arrival_ms"] + row["deadline_ms"],
            offered_ms=row["arrival_ms"],
            **{name: row[name] for name in Ended._fields},
        )
        for number, row in enumerate(rows.to_dict("records"))
    ]


def _batch(row: Mapping[Hashable, Any], predicted: dict[float, float], high: Counter[tuple[str, float]]) -> BatchRecord:
    """A row of batches; what was predicted of it is with its requests, which were dispatched when it was decided on.

    So is how many of them are of high priority; of a part of a batch that failed it is at most so many.
    """
    same = ("batch_id", "stream", "model", "priority", "batch_size", *SCHEDULED)
    return BatchRecord(
        **{name: row[name] for name in same},
        n_high=min(high[row["model"], row["decided_ms"]], row["batch_size"]),
        error=None,
        phases=Phases(*(row[name] for name in PHASES)),
        predicted_ms=predicted.get(row["decided_ms"], math.nan),
        co_runners=0,
    )


class Playback:
    """Answers the status page from a recording, which begins when a page is opened, and again when it is over.

    Args:
        recording: to play.
        speed: seconds of the recording in a second.
        clock: in seconds.
    """

    def __init__(self, recording: Recording, speed: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._recording = recording
        self._speed = speed
        self._clock = clock
        self._events: list[tuple[float, RequestResult | BatchRecord]] = [
            *((result.finish_ms, result) for result in recording.requests),
            *((batch.seen_ms, batch) for batch in recording.batches),
        ]
        self._events.sort(key=lambda event: event[0])
        arrived, left = defaultdict(list), defaultdict(list)
        for result in recording.requests:
            queue = result.model, result.priority
            arrived[queue].append(result.arrival_ms)
            left[queue].append(result.finish_ms if math.isnan(result.start_ms) else result.start_ms)
        self._queues = {queue: (np.sort(arrived[queue]), np.sort(left[queue])) for queue in arrived}
        self._restart()

    def _restart(self) -> None:
        self._began_s, self._now_ms, self._played = self._clock(), self._events[0][0], 0
        self._recent = Recent(lambda: self._now_ms, self._queue_lengths)

    def _queue_lengths(self) -> QueueLengths:
        found: dict[str, list[int]] = {}
        for (model, priority), (arrived, left) in self._queues.items():
            n = np.searchsorted(arrived, self._now_ms, "right") - np.searchsorted(left, self._now_ms, "right")
            if n > 0:
                found.setdefault(model, [0, 0])[priority] = int(n)
        return found

    def status(self, since_ms: float = 0.0) -> dict[str, Any]:
        """What the page shows, as `serving.api.plane.Plane.status` gives it."""
        if since_ms == 0.0 and self._played in (0, len(self._events)):
            self._restart()
        first_ms, last_ms = self._events[0][0], self._events[-1][0]
        now_ms = min(first_ms + 1e3 * self._speed * (self._clock() - self._began_s), last_ms)
        while self._played < len(self._events) and self._events[self._played][0] <= now_ms:
            self._now_ms, event = self._events[self._played]
            if isinstance(event, BatchRecord):
                self._recent.batch_ended(event)
            else:
                self._recent.request_ended(event)
            self._played += 1
        self._now_ms = now_ms
        machine = self._recording.machine
        seconds, of = (now_ms - first_ms) / 1e3, (last_ms - first_ms) / 1e3
        server = {
            "policy": "not recorded",
            "reason": f"the server ran as: {without_token(machine.command)}",
            "accepting": True,
            "streams": machine.streams,
            "busy": sum(batch.decided_ms <= now_ms < batch.seen_ms for batch in self._recording.batches),
            "fallbacks": 0,
            "note": f"Recording {self._recording.name} at {self._speed:g} times its speed: {seconds:.0f} of {of:.0f} s. "
            "Load the page again to see it from the start. Calls refused before they became requests are not recorded.",
        }
        return self._recent.answer(since_ms) | {"server": server}
