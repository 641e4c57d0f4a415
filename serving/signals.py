"""How a server's process is told to stop or to reload: signals, and work that goes on until then."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger("serving")


async def done_before(stopping: asyncio.Event, work: asyncio.Future[Any]) -> bool:
    """Wait until some work is done or `stopping` is set; returns whether the work is done."""
    stop = asyncio.ensure_future(stopping.wait())
    await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    return work.done()


def _handle_once(number: int) -> None:
    """Give a signal back to the system once it was caught (sysv_signal(3), glibc only).

    Python's own code runs only when no thread holds its lock, and that of the loop when the loop is free; the system needs
    neither.
    """
    with contextlib.suppress(AttributeError):
        library = ctypes.CDLL(None)
        library.signal.restype = ctypes.c_void_p
        library.sysv_signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        library.sysv_signal(number, library.signal(number, None))


async def _nothing() -> None:
    """Before there is a policy to reload."""


class Signals:
    """Signals of the process.

    Attributes:
        stopping: set by SIGINT and SIGTERM; the same again ends the process at once, whatever its threads do.
        on_reload: called at SIGHUP.
    """

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.on_reload: Callable[[], Coroutine[Any, Any, object]] = _nothing
        self._reloads: set[asyncio.Task[object]] = set()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
            _handle_once(number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _stop(self, number: int) -> None:
        if self.stopping.is_set():
            log.warning("%s: ending at once", signal.Signals(number).name)
            os._exit(128 + number)
        log.info("%s: stopping; the same again ends at once", signal.Signals(number).name)
        self.stopping.set()

    def _reload(self) -> None:
        if not self.stopping.is_set():
            task = asyncio.get_running_loop().create_task(self.on_reload())
            self._reloads.add(task)
            task.add_done_callback(self._reloads.discard)
