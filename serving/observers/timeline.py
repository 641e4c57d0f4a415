"""Keeps what a timeline of the live engine needs; writes all of it at the end, and the latest of it now and then."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Collection
from itertools import islice
from pathlib import Path

from envs.drawing.trace_events import BatchRow, RequestRow, write_trace
from serving.engine.request import BatchRecord, Observer, Outcome
from serving.observers.logs import OnceLog

log = logging.getLogger(__name__)

KEEP = 200_000  # of requests and of batches, the latest: some 100 MB of JSON
LATEST = 2_000  # of each, what a crash leaves behind: some 2 MB, which take 0.15 s to write while others are served


class Tracer(Observer):
    """Observes an engine for ``envs.drawing.trace_events``.

    Args:
        path: file to write.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._requests: deque[RequestRow] = deque(maxlen=KEEP)
        self._batches: deque[BatchRow] = deque(maxlen=KEEP)
        self._changed = self._closed = False
        self._lock = threading.Lock()
        self._once = OnceLog(f"the timeline {self.path}")

    def request_ended(self, outcome: Outcome) -> None:
        """Keep it."""
        self._changed = True
        o = outcome
        self._requests.append(
            RequestRow(
                o.id, o.model, o.priority, o.outcome, o.arrival_ms, o.start_ms, o.finish_ms, o.deadline_ms, o.batch_id
            )
        )

    def batch_ended(self, batch: BatchRecord) -> None:
        """Keep it."""
        b = batch
        self._batches.append(
            BatchRow(
                b.batch_id, b.stream, b.priority, b.model, b.batch_size, b.dispatch_ms, b.h2d_start_ms, b.h2d_end_ms,
                b.exec_start_ms, b.exec_end_ms, b.d2h_end_ms, b.predicted_ms, b.error,
            )
        )  # fmt: skip

    def latest(self) -> tuple[list[RequestRow], list[BatchRow]] | None:
        """What `write` should write now; None if nothing happened since the last call. Call on the engine's loop."""
        if not self._changed:
            return None
        self._changed = False
        requests, batches = islice(reversed(self._requests), LATEST), islice(reversed(self._batches), LATEST)
        return list(requests)[::-1], list(batches)[::-1]

    def write(self, requests: Collection[RequestRow], batches: Collection[BatchRow]) -> None:
        """Write the file, whole or not at all; a full disk is logged, no more. Blocks; may be called on any thread."""
        with self._lock:
            if not self._closed:
                self._write(requests, batches)

    def _write(self, requests: Collection[RequestRow], batches: Collection[BatchRow]) -> None:
        try:
            write_trace(self.path, requests, batches)
        except OSError as error:
            self._once.failure(error)
        else:
            self._once.success()

    def close(self) -> None:
        """Write all that is kept; what another thread writes afterwards is not."""
        with self._lock:
            self._closed = True
            self._write(self._requests, self._batches)
        if not self._once.failed:
            log.info("timeline of %d requests is in %s", len(self._requests), self.path)
