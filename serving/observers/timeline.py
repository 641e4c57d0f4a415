"""Keeps what a timeline of the live engine needs; writes all of it at the end, and the latest of it now and then."""

from __future__ import annotations

import functools
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection
from itertools import islice
from pathlib import Path

from envs.drawing.trace_events import BatchRow, RequestRow, write_trace
from serving.engine.request import BatchRecord, RequestResult
from serving.observers.output import Output

log = logging.getLogger(__name__)

KEEP = 200_000  # of requests and of batches, the latest: some 100 MB of JSON
LATEST = 2_000  # of each, what a crash leaves behind: some 2 MB, which take 0.15 s to write while others are served


class TimelineWriter(Output):
    """Observes an engine for `envs.drawing.trace_events`.

    Args:
        path: file to write.
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__(f"the timeline {path}")
        self.path = Path(path)
        self._requests: deque[RequestRow] = deque(maxlen=KEEP)
        self._batches: deque[BatchRow] = deque(maxlen=KEEP)
        self._changed = self._closed = False
        self._lock = threading.RLock()

    def request_ended(self, result: RequestResult) -> None:
        self._changed = True
        self._requests.append(RequestRow(*(getattr(result, name) for name in RequestRow._fields)))

    def batch_ended(self, batch: BatchRecord) -> None:
        self._batches.append(BatchRow(*(getattr(batch, name) for name in BatchRow._fields)))

    def save(self) -> Callable[[], None] | None:
        latest = self.latest()
        return None if latest is None else functools.partial(self.write, *latest)

    def latest(self) -> tuple[list[RequestRow], list[BatchRow]] | None:
        """What `write` should write now; None if nothing happened since the last call. Call on the engine's loop."""
        if not self._changed:
            return None
        self._changed = False
        requests, batches = islice(reversed(self._requests), LATEST), islice(reversed(self._batches), LATEST)
        return list(requests)[::-1], list(batches)[::-1]

    def write(self, requests: Collection[RequestRow], batches: Collection[BatchRow]) -> None:
        """Write the file, whole or not at all, unless it is closed. Blocks; may be called on any thread."""
        with self._lock:
            if self._closed:
                return
            with self.written():
                write_trace(self.path, requests, batches)

    def close(self) -> None:
        """Write all that is kept; what another thread writes afterwards is not."""
        with self._lock:
            self.write(self._requests, self._batches)
            self._closed = True
        if not self.failed:
            log.info("timeline of %d requests is in %s", len(self._requests), self.path)
