"""Work that must not be felt by batches: on a thread of its own, on one core, with no more right to it than a stream has."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch

from serving.executors.cpu import WORKER_NICENESS
from serving.models.users_code import error_line

Result = TypeVar("Result")


async def on_quiet_thread(work: Callable[..., Result], *args: Any) -> Result:
    """Do blocking work, which may run a user's code, and return or raise what it does. The process may end meanwhile."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Any, error: Exception | None) -> None:
        if future.done():  # given up
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        # Threads that share an operation wait for each other at its end: on busy cores, a multiple of the time.
        torch.set_num_threads(1)
        with contextlib.suppress(AttributeError, OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WORKER_NICENESS)
        result, failure = None, None
        try:
            result = work(*args)
        except BaseException as error:
            failure = error if isinstance(error, Exception) else RuntimeError(error_line(error))
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(partial(settle, result, failure))

    threading.Thread(target=run, name="load", daemon=True).start()
    return await future
