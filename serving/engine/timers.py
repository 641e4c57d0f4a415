"""When the engine looks again: a timer that is set again and again, and a coalescer of what arrives at the same time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable


class Timer:
    """Calls back at a time on a clock of ms, on the running loop.

    Args:
        now_ms: the clock.
        on_time: called when the time has come; the timer is off by then.
    """

    def __init__(self, now_ms: Callable[[], float], on_time: Callable[[], None]) -> None:
        self._now_ms = now_ms
        self._on_time = on_time
        self._at_ms = math.inf
        self._handle: asyncio.TimerHandle | None = None

    def set(self, at_ms: float) -> None:
        """Call back at this time in place of the one set before; inf: not at all."""
        if at_ms == self._at_ms:
            return
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._at_ms = at_ms
        if at_ms < math.inf:
            # Event loops count whole milliseconds. Rounded up: a timer that fires early would only be set again.
            delay_s = math.ceil(max(at_ms - self._now_ms(), 0.0) + 0.01) / 1e3
            self._handle = asyncio.get_running_loop().call_later(delay_s, self._fire)

    def _fire(self) -> None:
        self._handle = None
        self._at_ms = math.inf
        self._on_time()


class Coalescer:
    """Coalesces arrivals within one tick of the event loop, so that a burst costs one decision and one batch.

    The first arrival of a tick is acted on at once, the others together at the end of the tick: one that arrives alone does
    not wait. After a tick with a burst the first one waits as well, since it is most likely the first of the next burst. The
    wait is the work that the loop has in hand, never idle time.

    Args:
        act: called on the running loop for what has arrived.
    """

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._in_tick = False  # the end of a tick is awaited
        self._waiting = False  # and something arrived in it

    def arrived(self) -> None:
        """Note an arrival."""
        if self._in_tick:
            self._waiting = True
            return
        self._in_tick = True
        asyncio.get_running_loop().call_soon(self._end_tick)
        self._act()

    def _end_tick(self) -> None:
        self._in_tick = self._waiting
        if self._waiting:
            self._waiting = False
            asyncio.get_running_loop().call_soon(self._end_tick)
            self._act()
