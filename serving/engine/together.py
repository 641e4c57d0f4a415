"""Takes what comes in one turn of the loop together: a crowd costs one decision and one batch, not one of each a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Together:
    """Calls `act` for what came: at once for one that comes alone, at the end of the turn for the others.

    The first of a turn is taken for a lone one, and does not wait. After a turn with a crowd, the first one waits, too: it
    is most likely the first of the next crowd. The wait is the work that the loop has in hand, never idle time.

    Args:
        act: called on the running loop.
    """

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._open = False  # the end of this turn is awaited
        self._more = False  # and something waits for it

    def came(self) -> None:
        """Something came."""
        if self._open:
            self._more = True
            return
        self._open = True
        asyncio.get_running_loop().call_soon(self._end)
        self._act()

    def _end(self) -> None:
        self._open = self._more
        if self._more:
            self._more = False
            asyncio.get_running_loop().call_soon(self._end)
            self._act()
