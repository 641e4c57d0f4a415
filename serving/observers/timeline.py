"""Writes a timeline of the live engine while it serves: what ended since the last look is added to the file."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from envs.drawing.trace_events import FOOT, HEAD, BatchRow, RequestRow, TraceEvents, encoded
from serving.engine.request import BatchRecord, RequestResult
from serving.observers.output import Output
from traces.files import atomic_write_text

log = logging.getLogger(__name__)

KEEP = 200_000  # requests in a file, some 150 MB of JSON; the file before is kept as NAME.1.json
HOLD_MS = 30_000.0  # by which the curve of queued requests is behind, since requests are seen when they end


class TimelineWriter(Output):
    """Observes an engine for `envs.drawing.trace_events`.

    Args:
        path: file to write; it is complete JSON after each write.
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__(f"the timeline {path}")
        self.path = Path(path)
        self._requests: list[RequestRow] = []
        self._batches: list[BatchRow] = []
        self._events = TraceEvents()
        self._end = 0  # bytes of the file before its foot
        self._written = 0
        self._lock = threading.Lock()

    def request_ended(self, result: RequestResult) -> None:
        self._requests.append(RequestRow(*(getattr(result, name) for name in RequestRow._fields)))

    def batch_ended(self, batch: BatchRecord) -> None:
        self._batches.append(BatchRow(*(getattr(batch, name) for name in BatchRow._fields)))

    def save(self) -> Callable[[], None] | None:
        return functools.partial(self._write, self._take()) if self._requests or self._batches else None

    def close(self) -> None:
        self._write(self._take(), last=True)
        if not self.failed:
            log.info("timeline of %d requests is in %s", self._written, self.path)

    def _take(self) -> tuple[list[RequestRow], list[BatchRow]]:
        new = self._requests, self._batches
        self._requests, self._batches = [], []
        return new

    def _write(self, new: tuple[list[RequestRow], list[BatchRow]], last: bool = False) -> None:
        """Add what is new. Blocks; may be called on any thread."""
        requests, batches = new
        with self._lock:
            last = last or self._written + len(requests) >= KEEP
            until_ms = max((request.finish_ms for request in requests), default=0.0) - HOLD_MS
            text = encoded(self._events.part(requests, batches, None if last else until_ms))
            with self.written():
                self._append(text)
                self._written += len(requests)
            if self._written >= KEEP:
                os.replace(self.path, self.path.with_suffix(f".1{self.path.suffix}"))
                self._events, self._end, self._written = TraceEvents(), 0, 0

    def _append(self, text: str) -> None:
        if not self._end:
            atomic_write_text(self.path, HEAD + text + FOOT)
            self._end = len((HEAD + text).encode())
            return
        added, foot = f",\n{text}".encode() if text else b"", FOOT.encode()
        rest = memoryview(added + foot)
        with self.path.open("r+b", buffering=0) as file:
            file.seek(self._end)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                if len(rest) < len(added + foot):  # a part was written, over the foot
                    file.seek(self._end)
                    file.write(foot)
                    file.truncate()
                raise
        self._end += len(added)
