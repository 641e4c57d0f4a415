"""Runs dispatched batches on the executor, part by part, and gives the results of its threads back to the loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from serving.engine.batch import BatchInFlight
from serving.executors.base import BatchResult
from serving.executors.executor import Executor

log = logging.getLogger(__name__)


class BatchRunner:
    """The batches in flight, one per stream at most. All methods and callbacks are called on the engine's loop.

    Args:
        executor: runs them.
        on_part: called when a part of a batch ended.
        on_end: called when a batch ended; its stream is free.
        after_result: called after each result, once its stream is free or goes on with the next part.
    """

    def __init__(
        self,
        executor: Executor,
        on_part: Callable[[BatchInFlight, BatchResult], None],
        on_end: Callable[[int, BatchInFlight], None],
        after_result: Callable[[], None],
    ) -> None:
        self._executor = executor
        self._on_part = on_part
        self._on_end = on_end
        self._after_result = after_result
        self._batches: list[BatchInFlight | None] = [None] * executor.streams
        self._awaited: dict[str, asyncio.Event] = {}

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take over the executor's results."""

        def from_worker(result: BatchResult) -> None:
            try:
                loop.call_soon_threadsafe(self._on_result, result)
            except RuntimeError:  # the loop is closed: the server stopped without this batch, whose requests have ended
                log.info("batch %d ended after the server stopped", result.batch_id)

        self._executor.on_result = from_worker

    def launch(self, stream: int, batch: BatchInFlight) -> None:
        """Run a batch on a free stream; one that the executor refuses has ended when this returns."""
        self._batches[stream] = batch
        self._run(stream, batch)

    async def until_none_of(self, model: str) -> None:
        """Wait until no batch of a model is in flight."""
        if self._has(model):
            awaited = self._awaited[model] = asyncio.Event()
            try:
                await awaited.wait()
            finally:
                del self._awaited[model]

    def _has(self, model: str) -> bool:
        return any(batch is not None and batch.model == model for batch in self._batches)

    def _run(self, stream: int, batch: BatchInFlight) -> None:
        """Start the next part of a batch, or end the batch."""
        while (part := batch.next_part()) is not None:
            try:
                self._executor.submit(stream, part)
                return
            except ValueError as error:
                log.error("batch %d of %s was refused: %s", batch.batch_id, batch.model, error)
                batch.fail(str(error))
        self._batches[stream] = None
        self._on_end(stream, batch)
        awaited = self._awaited.get(batch.model)
        if awaited is not None and not self._has(batch.model):
            awaited.set()

    def _on_result(self, result: BatchResult) -> None:
        batch = self._batches[result.stream]
        assert batch is not None, f"stream {result.stream} reports batch {result.batch_id}, which is not in flight"
        self._on_part(batch, result)
        if result.error is not None:
            # Its halves fail until the bad request stands alone, which has a line of its own.
            level = logging.DEBUG if batch.split else logging.WARNING
            log.log(level, "batch %d of %s failed: %s", batch.batch_id, batch.model, result.error)
        batch.take(result)
        self._run(result.stream, batch)
        self._after_result()
