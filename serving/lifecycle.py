"""A server's life as a process: signals, and what is printed at the end of a replay."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from typing import Any

from rich.console import Console

from serving.config import ServeConfig
from serving.observers.report import print_table
from serving.server import Server

log = logging.getLogger("serving")


async def run(config: ServeConfig) -> int:
    """Serve until told to stop, or replay and print; returns the exit status.

    SIGINT and SIGTERM drain, a second one ends at once; SIGHUP reloads the policy.

    Raises:
        InputError: see ``Server``.
    """
    server = Server(config)
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def on_stop(number: int) -> None:
        if stopping.is_set():
            log.warning("%s again: ending at once", signal.Signals(number).name)
            os._exit(128 + number)
        log.info("%s: stopping", signal.Signals(number).name)
        stopping.set()

    reloads: set[asyncio.Task[bool]] = set()

    def on_hup() -> None:
        if server.engine is not None and server.engine.accepting:
            task = asyncio.ensure_future(server.reload_policy())
            reloads.add(task)
            task.add_done_callback(reloads.discard)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_stop, number)
    loop.add_signal_handler(signal.SIGHUP, on_hup)
    try:
        opening = loop.run_in_executor(None, server.open)
        stop = asyncio.ensure_future(stopping.wait())
        waited: set[asyncio.Future[Any]] = {opening, stop}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            log.info("stopped while it was starting; nothing was served")
            os._exit(0)  # a thread is inside a model's compilation, which cannot be interrupted
        profile = opening.result()
        if server.source is not None:
            result = await server.replay(profile, stopping)
            print_table(result, Console(file=sys.stdout, width=110))
            print(json.dumps(result), flush=True)
        else:
            await server.start(profile)
            await stop
        stop.cancel()
    finally:
        await server.close()
    return 0
