"""Keeps what a timeline of the live engine needs, and writes it at the end."""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path

from envs.trace_events import BatchRow, RequestRow, write_trace
from serving.request import BatchRecord, Observer, Outcome

log = logging.getLogger(__name__)

KEEP = 200_000  # of requests and of batches, the latest: some 100 MB of JSON


class Tracer(Observer):
    """Observes an engine for ``envs.trace_events``.

    Args:
        path: file to write.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._requests: deque[RequestRow] = deque(maxlen=KEEP)
        self._batches: deque[BatchRow] = deque(maxlen=KEEP)

    def request_ended(self, outcome: Outcome) -> None:
        """Keep it."""
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

    def close(self) -> None:
        """Write the file; a full disk is logged, no more."""
        try:
            write_trace(self.path, self._requests, self._batches)
        except OSError as error:
            log.error("%s: the timeline cannot be written: %s", self.path, error)
        else:
            log.info("timeline of %d requests is in %s", len(self._requests), self.path)
