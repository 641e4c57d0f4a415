"""Observers that write files: while the engine serves, so that a crash leaves something, and at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

from serving.engine.request import Observer

log = logging.getLogger("serving")

WRITE_S = 5.0


class Output(Observer):
    """An observer that writes files. A full disk costs what was to be written, and nothing else.

    Args:
        what: names the output in the log.

    Attributes:
        failed: whether it could not be written the last time.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self.failed = False

    def save(self) -> Callable[[], None] | None:
        """Take what is new, on the engine's loop; returns the part of the work that blocks, for any thread, if there is one."""
        return None

    def close(self) -> None:
        """Write the rest. Blocks."""

    @contextlib.contextmanager
    def written(self) -> Iterator[None]:
        """Log the first time that the block cannot write, not each one after it, and that it can again."""
        try:
            yield
        except Exception as error:
            if not self.failed:
                log.error("%s cannot be written, serving goes on without: %s", self._what, error)
            self.failed = True
        else:
            if self.failed:
                log.info("%s is written again", self._what)
            self.failed = False


@asynccontextmanager
async def saving(outputs: Sequence[Output], every_s: float = WRITE_S) -> AsyncIterator[None]:
    """Save the outputs every few seconds meanwhile, and close them at the end."""
    task = asyncio.ensure_future(_save(outputs, every_s))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        for output in outputs:
            with _logged():
                output.close()


async def _save(outputs: Sequence[Output], every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        for output in outputs:
            with _logged():
                blocking = output.save()
                if blocking is not None:
                    await asyncio.get_running_loop().run_in_executor(None, blocking)


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """Neither serving nor the other outputs depend on what goes wrong here."""
    try:
        yield
    except Exception:
        log.exception("an output failed")
