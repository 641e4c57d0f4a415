"""One timer that is set again and again: the engine's next thing to do if nothing happens before."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable


class Alarm:
    """Calls back at a time on a clock of ms, on the running loop.

    Args:
        now_ms: the clock. ring: called when it is time; the alarm is off by then.
    """

    def __init__(self, now_ms: Callable[[], float], ring: Callable[[], None]) -> None:
        self._now_ms = now_ms
        self._ring = ring
        self._at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def set(self, at_ms: float) -> None:
        """Ring at this time and not when it was set to before; inf: not at all."""
        if at_ms == self._at:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._at = at_ms
        if at_ms < math.inf:
            # Whole milliseconds, rounded up: loops count so, and one that rings early would only be set again.
            delay_s = math.ceil(max(at_ms - self._now_ms(), 0.0) + 0.01) / 1e3
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._at = math.inf
        self._ring()
