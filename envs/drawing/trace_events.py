"""A run as a timeline: Chrome trace events, which ui.perfetto.dev and chrome://tracing show. For simulated and live runs.

One row of the picture is one stream, with its copies and executions; requests are spans from arrival to dispatch above them,
by priority; a mark says where each deadline was met or missed, and a curve how many requests were queued.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from envs.scheduling.state import PRIORITIES
from traces.files import atomic_write_text
from traces.measurements import Phases

QUEUES, STREAMS = 1, 2  # the two groups of rows


class RequestRow(NamedTuple):
    """A request that ended; times in ms on one clock, start_ms NaN and batch_id -1 when it was never dispatched.

    What its client said of it, "" without: client_id and traceparent (W3C trace context).
    """

    id: int
    model: str
    priority: int
    outcome: str
    arrival_ms: float
    start_ms: float
    finish_ms: float
    deadline_ms: float
    batch_id: int = -1
    client_id: str = ""
    traceparent: str = ""

    @property
    def left_queue_ms(self) -> float:
        """When it was dispatched, or ended in the queue."""
        return self.finish_ms if math.isnan(self.start_ms) else self.start_ms


class BatchRow(NamedTuple):
    """A batch that ended, ``n_high`` of its requests of high priority; times in ms on the clock of the requests."""

    batch_id: int
    stream: int
    priority: int
    model: str
    batch_size: int
    n_high: int
    phases: Phases
    predicted_ms: float = math.nan
    error: str | None = None


class TraceEvents:
    """Turns a run into events of the Chrome trace format, part by part as it goes on."""

    def __init__(self) -> None:
        self._steps: list[tuple[float, int, int]] = []
        self._queued = [0, 0]
        self._streams: set[int] | None = None  # whose rows have names

    def part(
        self, requests: Iterable[RequestRow], batches: Iterable[BatchRow], until_ms: float | None = None
    ) -> list[dict[str, Any]]:
        """The events of a part, sorted by time (in microseconds).

        Args:
            requests: that ended in this part.
            batches: likewise.
            until_ms: where the curve of queued requests ends, since requests that end later may have been queued then;
                None in the last part.
        """
        events: list[dict[str, Any]] = []
        for request in requests:
            events += _request_events(request)
            arrival, left = (request.arrival_ms, request.priority, 1), (request.left_queue_ms, request.priority, -1)
            self._steps += [arrival, left]
        streams = set(self._streams or ())
        for batch in batches:
            events += _batch_events(batch)
            streams.add(batch.stream)
        self._steps.sort()
        count = len(self._steps) if until_ms is None else bisect_left(self._steps, (until_ms,))
        events += _queue_lengths(self._steps[:count], self._queued)
        del self._steps[:count]
        events.sort(key=lambda event: event["ts"])
        names = _names(sorted(streams)) if streams != self._streams else []
        self._streams = streams
        return names + events


def trace_events(requests: Iterable[RequestRow], batches: Iterable[BatchRow]) -> list[dict[str, Any]]:
    """The events of a whole run; see `TraceEvents.part`."""
    return TraceEvents().part(requests, batches)


def encoded(events: Iterable[dict[str, Any]]) -> str:
    """Events as JSON, to be joined by commas."""
    # Event by event: one call for all would hold Python's lock for too long in a server.
    return ",\n".join(map(json.JSONEncoder(separators=(",", ":")).encode, events))


HEAD, FOOT = '{"displayTimeUnit":"ms","traceEvents":[', "]}"


def write_trace(path: Path | str, requests: Iterable[RequestRow], batches: Iterable[BatchRow]) -> None:
    """Write the timeline of a run as JSON, whole or not at all."""
    atomic_write_text(path, HEAD + encoded(trace_events(requests, batches)) + FOOT)


def _us(ms: float) -> float:
    return round(ms * 1e3, 3)


def _request_events(row: RequestRow) -> list[dict[str, Any]]:
    met = row.outcome == "met"
    common = {"cat": "queue", "id": row.id, "pid": QUEUES, "tid": row.priority, "name": row.model}
    args = {"request": row.id, "outcome": row.outcome, "batch": row.batch_id,
            "latency_ms": round(row.finish_ms - row.arrival_ms, 3),
            "deadline_ms": round(row.deadline_ms - row.arrival_ms, 3)}  # fmt: skip
    args |= {name: text for name in ("client_id", "traceparent") if (text := getattr(row, name))}
    mark = {
        "ph": "i", "s": "t", "cat": "deadline", "pid": QUEUES, "tid": row.priority, "ts": _us(row.finish_ms),
        "name": "deadline met" if met else "cancelled" if row.outcome == "cancelled" else "deadline missed",
        "args": args,
    }  # fmt: skip
    return [
        common | {"ph": "b", "ts": _us(row.arrival_ms), "args": args},
        common | {"ph": "e", "ts": _us(max(row.left_queue_ms, row.arrival_ms))},
        mark,
    ]


def _batch_events(row: BatchRow) -> list[dict[str, Any]]:
    args: dict[str, Any] = {"batch": row.batch_id, "size": row.batch_size, "priority": PRIORITIES[row.priority]}
    args["high_priority_requests"] = row.n_high
    if not math.isnan(row.predicted_ms):
        args["predicted_ms"] = round(row.predicted_ms, 3)
    args["actual_ms"] = round(row.phases.total_ms, 3)
    if row.error is not None:
        args["error"] = row.error
    phases = row.phases
    spans = (
        ("copy in", "copy", phases.h2d_start_ms, phases.h2d_end_ms),
        (f"{row.model} x{row.batch_size}", "execution", phases.exec_start_ms, phases.exec_end_ms),
        ("copy back", "copy", phases.exec_end_ms, phases.d2h_end_ms),
    )
    return [
        {"ph": "X", "name": name, "cat": category, "pid": STREAMS, "tid": row.stream, "ts": _us(start),
         "dur": _us(end - start), "args": args}
        for name, category, start, end in spans
    ]  # fmt: skip


def _queue_lengths(steps: list[tuple[float, int, int]], length: list[int]) -> list[dict[str, Any]]:
    events = []
    for at, priority, change in steps:
        length[priority] += change
        args = dict(zip(PRIORITIES, length))
        events.append({"ph": "C", "name": "queued", "pid": QUEUES, "tid": 0, "ts": _us(at), "args": args})
    return events


def _names(streams: list[int]) -> list[dict[str, Any]]:
    rows: list[tuple[int, int | None, str]] = [(QUEUES, None, "queues"), (STREAMS, None, "device")]
    rows += [(QUEUES, number, f"{name} priority") for number, name in enumerate(PRIORITIES)]
    rows += [(STREAMS, stream, f"stream {stream}") for stream in streams]
    return [
        {
            "ph": "M",
            "name": "process_name" if thread is None else "thread_name",
            "pid": process,
            "tid": thread or 0,
            "ts": 0,
            "args": {"name": name},
        }
        for process, thread, name in rows
    ]
