"""Work that batches must not feel: on one thread, with no more right to a core than a stream has."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from serving.executors.cpu import WORKER_NICENESS
from serving.models.users_code import error_line

Result = TypeVar("Result")


class QuietThread:
    """Does blocking work in turn, which may run a user's code; the process may end meanwhile.

    It is one thread for all of a server's models: memory that one leaves behind is the next one's.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=self._run, name="quiet", daemon=True).start()

    async def do(self, work: Callable[..., Result], *args: Any) -> Result:
        """Return or raise what `work(*args)` does."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def settle(outcome: Any, set_outcome: Callable[[Any], None]) -> None:
            if not future.done():  # else given up
                set_outcome(outcome)

        def run() -> None:
            outcome: Any
            try:
                outcome, set_outcome = work(*args), future.set_result
            except BaseException as error:
                outcome = error if isinstance(error, Exception) else RuntimeError(error_line(error))
                set_outcome = future.set_exception  # type: ignore[assignment]
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(settle, outcome, set_outcome)

        self._work.put(run)
        return await future

    def close(self) -> None:
        """End the thread, once what it was given is done."""
        self._work.put(None)

    def _run(self) -> None:
        # Threads that share an operation wait for each other at its end: on busy cores, a multiple of the time.
        torch.set_num_threads(1)
        with contextlib.suppress(AttributeError, OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WORKER_NICENESS)
        while (work := self._work.get()) is not None:
            work()
